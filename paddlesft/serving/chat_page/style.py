"""The page's look, beyond Gradio's own."""

STYLE = """
.gradio-container { max-width: 1200px !important; margin: 0 auto; }
#top { align-items: center; flex-wrap: nowrap; gap: 8px; }
#top .prose :is(h1, h2, h3) { margin: 0; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
#top button { flex: 0 0 auto; }
.reply-figures { color: var(--body-text-color-subdued); font-size: 0.78em; line-height: 1.5; padding-top: 4px; }
.reply-problem { border-left: 3px solid #d97706; padding: 2px 0 2px 10px; overflow-wrap: anywhere; }
.message .prose { overflow-wrap: anywhere; }
.message pre { overflow-x: auto; }
.message .katex-display { overflow-x: auto; overflow-y: hidden; }
.saved { display: none !important; }
footer { display: none !important; }
@media (max-width: 640px) {
  .gradio-container > main, .gradio-container main.fillable { padding: 8px !important; }
  .message-row.bubble { margin: 8px 4px !important; max-width: calc(100% - 8px) !important; }
}
"""

# one place for the chat's height: what is left of the window below the head and above the input
HEIGHT = "max(260px, calc(100dvh - 300px))"

TOGGLE_DARK = "() => { document.body.classList.toggle('dark'); }"

SAVE = """(name, text) => {
  if (!text) { return; }
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: 'application/jsonl'}));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}"""
