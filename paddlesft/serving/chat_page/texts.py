"""What the page says, in English and Chinese."""

from __future__ import annotations

LANGUAGES = ("en", "zh")

TEXTS: dict[str, tuple[str, str]] = {
    # key: (English, Chinese)
    "other_language": ("中文", "English"),
    "chat": ("Chat", "对话"),
    "compare": ("Compare", "对比"),
    "model": ("Model", "模型"),
    "left": ("Left", "左侧"),
    "right": ("Right", "右侧"),
    "no_models": ("waiting for the server …", "正在等待服务器……"),
    "message": ("Write a message …", "输入消息……"),
    "message_compare": ("One message for both models …", "输入消息,同时发给两个模型……"),
    "empty_chat": (
        "### What would you like to know?\nThe reply appears as it is written.",
        "### 想聊点什么?\n回复会边生成边显示。",
    ),
    "empty_compare": ("The first model's reply", "第一个模型的回复"),
    "empty_compare_right": ("The second model's reply", "第二个模型的回复"),
    "clear": ("New conversation", "新对话"),
    "other_reply": ("Show the other reply", "查看其他回复"),
    "left_better": ("Left is better", "左侧更好"),
    "right_better": ("Right is better", "右侧更好"),
    "settings": ("Settings", "设置"),
    "system": ("System message", "系统提示词"),
    "system_info": (
        "How the model should behave. Stands before the conversation; empty: the model's own.",
        "规定模型的行为,放在对话之前;留空则使用模型自带的。",
    ),
    "max_tokens": ("Longest reply", "最大长度"),
    "max_tokens_info": ("In tokens; one is about ¾ of an English word.", "单位为 token,一个约为 1 到 2 个汉字。"),
    "temperature": ("Temperature", "温度"),
    "temperature_info": (
        "0 always takes the likeliest token; higher is more varied, above 1 often confused.",
        "0 总是选最可能的 token;越高越多样,超过 1 容易混乱。",
    ),
    "top_p": ("Top-p", "Top-p"),
    "top_p_info": (
        "Draws among the likeliest tokens that together reach this probability; 1: among all.",
        "在累计概率达到该值的最可能 token 中抽取;1 表示不限制。",
    ),
    "top_k": ("Top-k", "Top-k"),
    "top_k_info": (
        "Draws among this many likeliest tokens; 0: among all.",
        "在最可能的若干个 token 中抽取;0 表示不限制。",
    ),
    "repetition_penalty": ("Repetition penalty", "重复惩罚"),
    "repetition_penalty_info": (
        "Above 1 makes tokens that occurred less likely.",
        "大于 1 时,已出现过的 token 更不易再出现。",
    ),
    "seed": ("Seed", "随机种子"),
    "seed_info": (
        "The same number gives the same reply again; 0: another one each time.",
        "数值相同则回复相同;0 表示每次不同。",
    ),
    "stop": ("Stop strings", "停止词"),
    "stop_info": ("One a line; the reply ends before the first of them.", "每行一个;回复在遇到其中之一时结束。"),
    "data": ("Save and load", "保存与载入"),
    "export": ("Save conversation", "保存对话"),
    "import": ("Load conversation", "载入对话"),
    "data_info": (
        "A conversation is saved as one row of a training file (JSON lines, `messages`); any training format can be "
        "loaded.",
        "对话保存为训练数据文件的一行(JSONL,`messages` 格式);任何训练数据格式均可载入。",
    ),
    "pairs": ("Save preference pairs ({count})", "保存偏好数据({count} 对)"),
    "pairs_info": (
        "A pair for preference training (DPO) arises when one reply to a message has 👍 and another one 👎: of a "
        "retry, or of the compare view.",
        "同一条消息的一个回复点赞、另一个点踩(重试或对比得到),即成为一对偏好训练(DPO)数据。",
    ),
    "nothing_to_save": ("There is no reply to save yet.", "还没有可以保存的回复。"),
    "no_pairs": (
        "There is no pair yet: like one reply to a message and dislike another one.",
        "还没有偏好数据:请对同一条消息的一个回复点赞、另一个点踩。",
    ),
    "more_rows": ("The file holds several conversations; the first one was loaded.", "文件中有多段对话,已载入第一段。"),
    "not_loaded": ("Nothing was loaded. {detail}", "未能载入。{detail}"),
    "pair_made": ("Noted: {count} preference pairs.", "已记录,共 {count} 对偏好数据。"),
    "not_saved": ("The preference file cannot be written: {detail}", "无法写入偏好数据文件:{detail}"),
    "no_replies_to_judge": ("There are no two replies to choose from yet.", "还没有两个可供选择的回复。"),
    "same_replies": ("Both replies are the same; they make no pair.", "两个回复相同,不能成为偏好数据。"),
    "different_prompts": (
        "The two conversations went on from different replies, so this choice makes no pair. Choose after each "
        "message, or begin a new conversation.",
        "两侧此前的对话已不相同,这次选择不能成为偏好数据。请每轮都选择,或开始新对话。",
    ),
    "chosen": ("✓ chosen", "✓ 已选择"),
    "not_chosen": ("the conversation goes on from the other reply", "对话从另一侧的回复继续"),
    "copy": ("copy", "复制"),
    "thinking": ("Thinking", "思考过程"),
    "stopped": ("stopped", "已停止"),
    "cut_by_length": ("longest reply reached", "已达最大长度"),
    "figure_tokens": ("{about}{tokens} tokens", "{about}{tokens} token"),
    "figure_speed": ("{speed:.1f} tokens/s", "{speed:.1f} token/秒"),
    "figure_first": ("first after {seconds:.2f} s", "首字 {seconds:.2f} 秒"),
    "figure_prompt": ("prompt {tokens} tokens", "提示 {tokens} token"),
    "figure_seconds": ("{seconds:.1f} s", "{seconds:.1f} 秒"),
    "reply_of": ("reply {number} of {count}", "第 {number}/{count} 个回复"),
    "try_again": ("Press ↻ to try again.", "点击 ↻ 重试。"),
    "empty_reply": ("(The model said nothing.)", "(模型没有输出内容。)"),
    "unreachable": (
        "The server at {url} cannot be reached. Is it running?",
        "无法连接服务器 {url},它在运行吗?",
    ),
    "key": (
        "The server asks for an API key and did not accept the page's. Start the page with the right one in the "
        "environment variable PADDLESFT_API_KEY.",
        "服务器需要 API 密钥,而页面的密钥未被接受。请在环境变量 PADDLESFT_API_KEY 中设置正确的密钥后重新启动页面。",
    ),
    "missing": ("The server does not have what was asked for.", "服务器上没有所请求的内容。"),
    "busy": ("The server is busy: more requests wait than it takes.", "服务器繁忙,排队的请求已满。"),
    "busy_wait": ("It asks to wait {wait} s.", "请等待 {wait} 秒。"),
    "not_ready": (
        "The server is not ready: it is still loading the model, or stopping.",
        "服务器尚未就绪:正在加载模型或正在关闭。",
    ),
    "refused": ("The server refused the request.", "服务器拒绝了该请求。"),
    "failed": ("The server failed.", "服务器出错。"),
    "cut_off": (
        "The connection to the server broke before the reply was complete.",
        "回复尚未完成,与服务器的连接中断。",
    ),
    "server_says": ("It says: {detail}", "服务器的说明:{detail}"),
}


def say(language: str, key: str, **values: object) -> str:
    """Return a text.

    Args:
        language: one of ``LANGUAGES``.
        key: of ``TEXTS``.
        values: for the places in it.
    """
    text = TEXTS[key][LANGUAGES.index(language)]
    return text.format(**values) if values else text


def preferred_language(accept_language: str | None) -> str:
    """Return the language that a browser asks for first among those there are, by its ``Accept-Language``; else en."""
    wishes = []
    for number, part in enumerate((accept_language or "").split(",")):
        name, _, quality = part.strip().partition(";q=")
        try:
            wishes.append((-float(quality or 1), number, name.split("-")[0].lower()))
        except ValueError:
            continue
    return next((name for _, _, name in sorted(wishes) if name in LANGUAGES), "en")
