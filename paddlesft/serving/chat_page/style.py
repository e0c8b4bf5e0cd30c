"""The page's look, beyond Gradio's own."""

STYLE = """
.gradio-container { max-width: 1200px !important; margin: 0 auto !important; width: 100% !important; }
.main.fillable { padding: 8px 16px !important; }
main.contain { width: 100% !important; padding: 0 !important; }
main.contain > .column, #tabs .tabitem > .column { gap: 8px; }
#top { align-items: center; flex-wrap: nowrap; gap: 8px; padding-right: 0; }
#top .prose :is(h1, h2, h3) { margin: 0; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
#top button { flex: 0 0 auto; }
#tabs .tabitem { padding: 8px 0 0; }
.sidebar > .toggle-button { display: none; }
.sidebar { max-width: 100vw; z-index: 50; }
.explained { font-size: 0.85em; color: var(--body-text-color-subdued); }
.explained .prose { color: inherit; }
.reply-figures { color: var(--body-text-color-subdued); font-size: 0.78em; line-height: 1.5; padding-top: 4px; }
.copy-reply { all: unset; cursor: pointer; text-decoration: underline; }
.reply-problem { border-left: 3px solid #d97706; padding: 2px 0 2px 10px; overflow-wrap: anywhere; }
.message .prose { overflow-wrap: anywhere; }
.message pre { overflow-x: auto; }
.message .katex-display { overflow-x: auto; overflow-y: hidden; }
.saved { display: none !important; }
footer { display: none !important; }
:root:has(body.dark) { color-scheme: dark; }
@media (max-width: 640px) {
  .main.fillable { padding: 4px 8px !important; }
  #top .prose h2 { font-size: 1.2em; }
  .message-row.bubble { margin: 8px 4px !important; max-width: calc(100% - 8px) !important; }
  .columns { gap: 8px; }
  #compare-0, #compare-1 { height: max(170px, calc(50dvh - 160px)) !important; }
}
"""

# what is left of the window below the head and above the input
HEIGHT = "max(240px, calc(100dvh - 254px))"

HEAD = """<script>
function copyReply(button) {
  const text = button.dataset.text;
  const shown = () => {
    const label = button.textContent;
    button.textContent = "✓";
    setTimeout(() => { button.textContent = label; }, 1200);
  };
  if (navigator.clipboard) { navigator.clipboard.writeText(text).then(shown); return; }
  const area = document.createElement("textarea");  // pages of other machines without TLS have no clipboard
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
  shown();
}
</script>"""

TOGGLE_SETTINGS = "() => { document.querySelector('.sidebar .toggle-button').click(); }"

TOGGLE_DARK = "() => { document.body.classList.toggle('dark'); }"

SAVE = """(name, text) => {
  if (!text) { return; }
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: 'application/jsonl'}));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}"""
