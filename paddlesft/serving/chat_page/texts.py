"""Every word of the page, in English and Chinese."""

from __future__ import annotations

LANGUAGES = {"en": "English", "zh": "中文"}

_TEXTS: dict[str, tuple[str, str]] = {
    "intro": (
        "Ask a model, or two of them side by side. Nothing leaves this server.",
        "向一个模型提问，或让两个模型并排回答。内容不会离开这台服务器。",
    ),
    "model": ("Model", "模型"),
    "other": ("Second model", "第二个模型"),
    "base": ("base", "基座"),
    "refresh": ("Look for models again", "重新获取模型列表"),
    "compare": ("Compare two models", "对比两个模型"),
    "message": ("Your message", "输入消息"),
    "send": ("Send", "发送"),
    "stop": ("Stop", "停止"),
    "retry": ("Ask again", "重新生成"),
    "undo": ("Take back", "撤回"),
    "clear": ("Clear", "清空"),
    "empty": ("Ask something below.", "在下方输入问题。"),
    "settings": ("Settings", "设置"),
    "system": ("System prompt", "系统提示词"),
    "system_info": (
        "Stands before the conversation. Empty: the one the model was trained with, if any.",
        "放在对话最前面。留空则使用模型训练时的系统提示词（如有）。",
    ),
    "max_tokens": ("Longest reply", "回复最大长度"),
    "max_tokens_info": (
        "In tokens; a token is about three quarters of a word.",
        "单位为 token，一个汉字约一到两个 token。",
    ),
    "temperature": ("Temperature", "温度"),
    "temperature_info": (
        "0 always takes the likeliest token and answers the same every time; higher is more varied.",
        "0 总是取概率最大的 token，每次回答相同；越大越多样。",
    ),
    "top_p": ("Top p", "Top p"),
    "top_p_info": (
        "Draws from the likeliest tokens that together reach this probability; 1 draws from all.",
        "只从累计概率达到该值的最可能 token 中抽取；1 表示不限制。",
    ),
    "top_k": ("Top k", "Top k"),
    "top_k_info": (
        "Draws from this many likeliest tokens; 0 draws from all.",
        "只从最可能的若干个 token 中抽取；0 表示不限制。",
    ),
    "repetition_penalty": ("Repetition penalty", "重复惩罚"),
    "repetition_penalty_info": (
        "Above 1 makes tokens that stand there already less likely; 1 is off.",
        "大于 1 会降低已出现 token 的概率；1 表示关闭。",
    ),
    "seed": ("Seed", "随机种子"),
    "seed_info": (
        "The same number gives the same reply; empty draws anew.",
        "相同的数字得到相同的回复；留空则每次随机。",
    ),
    "stop_strings": ("Stop texts", "停止文本"),
    "stop_strings_info": ("One a line; the reply ends before them.", "每行一个，回复在其之前结束。"),
    "files": ("Save and load", "保存与载入"),
    "export": ("Save the conversation", "保存对话"),
    "export_info": (
        'One row of a training file: {"messages": [...]}. Both conversations when two models are compared.',
        '训练数据文件的一行：{"messages": [...]}；对比模式下保存两个对话。',
    ),
    "import": ("Load a conversation", "载入对话"),
    "preferences": ("Save preferences (DPO)", "保存偏好数据（DPO）"),
    "preferences_info": (
        "Rows with a chosen and a rejected reply: from thumbs up and down on replies to the same message, and from "
        "the buttons under a comparison.",
        "含被选中与被拒绝回复的数据行：来自对同一消息不同回复的点赞与点踩，以及对比时的选择按钮。",
    ),
    "left_better": ("The left one is better", "左边更好"),
    "right_better": ("The right one is better", "右边更好"),
    "pairs": ("{count} preferences collected", "已收集 {count} 条偏好"),
    "no_pairs": (
        "No preferences yet: give one reply a thumbs up and another reply to the same message a thumbs down, or compare "
        "two models and choose a side.",
        "还没有偏好数据：对同一消息的一个回复点赞、另一个点踩，或对比两个模型并选择一边。",
    ),
    "nothing": ("There is nothing to save yet.", "还没有可保存的内容。"),
    "no_message": ("There is no message to answer again.", "没有可以重新回答的消息。"),
    "nothing_back": ("There is nothing to take back.", "没有可以撤回的内容。"),
    "loaded": ("Loaded {count} messages.", "已载入 {count} 条消息。"),
    "not_loaded": ("{file} was not loaded: {reason}.", "未能载入 {file}：{reason}。"),
    "not_json": ("line {line} is not JSON", "第 {line} 行不是 JSON"),
    "no_messages": (
        'it has no row with "messages" as a list of {{"role", "content"}}',
        '没有含 "messages"（{{"role", "content"}} 列表）的数据行',
    ),
    "bad_message": (
        "message {number} needs a role (system, user, assistant) and a content that is text",
        "第 {number} 条消息需要 role（system、user、assistant）和文本 content",
    ),
    "chose": ("Noted. {pairs}", "已记录。{pairs}"),
    "not_both": ("There are not two different replies to choose from.", "没有两个不同的回复可供选择。"),
    "facts": ("{tokens} tokens", "{tokens} 个 token"),
    "rate": ("{rate:.1f} tokens/s", "{rate:.1f} token/秒"),
    "first": ("first after {seconds:.2f} s", "首字 {seconds:.2f} 秒"),
    "prompt": ("prompt {tokens}", "提示 {tokens}"),
    "stopped": ("stopped", "已停止"),
    "length": ("cut at its longest", "达到最大长度"),
    "writing": ("writing", "生成中"),
    "down": (
        "Nothing answers at {url}. Start the server (paddlesft serve), then press Ask again.",
        "{url} 没有响应。请启动服务（paddlesft serve），然后点“重新生成”。",
    ),
    "loading": (
        "The server is not ready: {detail} Press Ask again in a moment.",
        "服务尚未就绪：{detail} 请稍后点“重新生成”。",
    ),
    "busy": ("The server is busy. {detail} Then press Ask again.", "服务繁忙。{detail} 之后点“重新生成”。"),
    "key": (
        "The server asks for an API key. Set PADDLESFT_API_KEY for this page and start it again.",
        "服务需要 API 密钥。请为本页面设置 PADDLESFT_API_KEY 后重新启动。",
    ),
    "ended": ("The reply broke off. {detail} Press Ask again.", "回复中断。{detail} 请点“重新生成”。"),
    "refused": ("The server refused: {detail}", "服务拒绝了请求：{detail}"),
    "no_model": ("No model is chosen yet. Press ⟳.", "尚未选择模型，请点 ⟳。"),
    "language": ("Language", "语言"),
}


def text(key: str, language: str, **values: object) -> str:
    """Return a sentence.

    Args:
        key: its name.
        language: "en" or "zh"; anything else is read as English.
        values: for its gaps.
    """
    found = _TEXTS[key][1 if language == "zh" else 0]
    return found.format(**values) if values else found


def language_of(accept_language: str | None) -> str:
    """Return "zh" for a browser whose first choice is Chinese, else "en"."""
    first = (accept_language or "").split(",")[0].strip().lower()
    return "zh" if first.startswith("zh") else "en"
