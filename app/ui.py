"""The page: tabs at the left, adapters at the right (folded above on a telephone), one theme, light and dark."""

import gradio as gr

from .studio import Studio
from .tabs.adapters import AdapterPanel, Asked, build_panel
from .tabs.api import build_api
from .tabs.classify import build_classify
from .tabs.common import QUICK
from .tabs.depth import build_depth
from .tabs.details import build_details
from .tabs.generate import build_generate
from .tabs.kept import KeptSettings
from .tabs.strength import name_strengths
from .tabs.train import build_train

FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
THEME = gr.themes.Default(primary_hue="teal", neutral_hue="slate", font=FONTS, font_mono=["ui-monospace", "monospace"])
CSS = """
.gradio-container { max-width: 1440px !important; }
.details table, .details tr, .details tbody { border: none !important; }
#title h1 { margin-bottom: 0; }
.hint { color: var(--body-text-color-subdued); margin: 4px 0; }
.progress { display: flex; gap: 12px; align-items: center; }
.progress progress { flex: 1; min-width: 80px; max-width: 420px; height: 10px; appearance: none; border: none; border-radius: 5px;
  overflow: hidden; background: var(--border-color-primary); color: var(--color-accent); }
.progress progress::-webkit-progress-bar { background: var(--border-color-primary); }
.progress progress::-webkit-progress-value { background: var(--color-accent); }
.progress progress::-moz-progress-bar { background: var(--color-accent); }
.adapter { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 10px 12px; gap: 6px !important; }
.adapter .block, .adapter .form { border-width: 0 !important; padding: 0 !important; background: transparent !important;
  box-shadow: none !important; }
.toast-title, [data-testid="status-tracker"]:has(> .error) { display: none !important; }
.block > [data-testid="block-label"].float, .block .label-wrap > [data-testid="block-label"] { position: static; }
.block:has(> [data-testid="block-label"].float) > .image-container { height: calc(100% - 30px); }
.strength { white-space: nowrap; min-width: max-content !important; flex: 0 0 auto !important; }
.strengths { align-items: center; gap: 6px !important; }
.strengths > .block:has(.strength-title) { flex: 1 1 180px !important; }
.strength-title { margin: 0; color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
.folder-picker span { display: inline-block; padding: 4px 12px; border-radius: 6px; cursor: pointer; font-weight: 600;
  background: var(--button-secondary-background-fill); color: var(--button-secondary-text-color); }
.folder-picker + .hint { margin-left: 6px; }
.tight { gap: 8px !important; }
.facts { padding: 0; font-size: 0.82rem; color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
.facts p { margin: 0 0 2px; }
.facts .thumbnail { width: 100%; height: 84px; object-fit: cover; object-position: top; border-radius: 6px; margin: 2px 0 6px; }
.drawn img { image-rendering: pixelated; }
.drawn .image-frame img { width: 100%; height: 100%; object-fit: contain; }
.drawn .grid-container { grid-template-columns: repeat(auto-fill, minmax(84px, 1fr)) !important; }
.drawn .grid-container img { object-fit: contain !important; padding-bottom: 16px; }
.drawn .grid-wrap { height: auto !important; min-height: 0 !important; max-height: none !important; }
.drawn .caption-label { max-width: 100%; left: 0; right: 0; padding: 1px 4px; font-size: 0.68rem; border-radius: 0; }
.wide img { image-rendering: auto; }
.file-preview-holder { max-height: 320px; }
.wide .grid-container { grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)) !important; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); gap: 12px; }
.card { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 10px 14px; }
.card h3, .details h3 { margin: 8px 0; font-size: 1rem; overflow-wrap: anywhere; }
.card ol { list-style: none; margin: 0; padding: 0; }
.card li { display: grid; grid-template-columns: minmax(2em, 1fr) 2fr 4.5em; gap: 8px; align-items: center; margin: 0; }
.card .name { overflow-wrap: anywhere; font-weight: 600; }
.card .share { text-align: right; font-variant-numeric: tabular-nums; }
.card .bar { height: 8px; border-radius: 4px; background: var(--border-color-primary); overflow: hidden; }
.card .bar i { display: block; height: 100%; background: var(--color-accent); }
.answers { overflow-x: auto; max-height: 70vh; }
.answers table, .answers tr, .answers tbody { border: none !important; }
.answers table { width: 100%; border-collapse: collapse; font-size: 0.9rem; }
.answers th { text-align: left; overflow-wrap: anywhere; position: sticky; top: 0; background: var(--body-background-fill); }
.answers th, .answers td { padding: 4px 8px; min-width: 90px; border: none !important; vertical-align: middle;
  border-bottom: 1px solid var(--border-color-primary) !important; }
.answers img { display: block; width: 64px; height: 64px; object-fit: contain; image-rendering: pixelated; }
.answers td > span { font-size: 0.8rem; overflow-wrap: anywhere; }
.answers .bar { display: block; height: 6px; margin: 3px 0; border-radius: 3px; background: var(--border-color-primary); overflow: hidden; }
.answers .bar i { display: block; height: 100%; background: var(--color-accent); }
.details table { width: 100%; font-size: 0.85rem; border-collapse: collapse; margin-bottom: 12px; }
.details th { text-align: left; font-weight: 500; color: var(--body-text-color-subdued); width: 40%; }
.details th, .details td { padding: 3px 6px; border: none !important; border-bottom: 1px solid var(--border-color-primary) !important;
  overflow-wrap: anywhere; vertical-align: top; }
#panel { border-width: 0 !important; padding: 0; background: transparent; }
#panel > .label-wrap { margin-bottom: 8px; }
#panel > .label-wrap span { font-size: 1.25rem; font-weight: 600; }
.norms ol { list-style: none; margin: 0; padding: 0; max-height: 70vh; overflow-y: auto; font-size: 0.8rem; }
.norms li { display: grid; grid-template-columns: minmax(0, 1fr) 5em; gap: 0 8px; margin: 0 0 6px; }
.norms .layer { grid-column: 1 / -1; overflow-wrap: anywhere; }
.norms .bar { height: 8px; align-self: center; border-radius: 4px; background: var(--border-color-primary); overflow: hidden; }
.norms .bar i { display: block; height: 100%; background: var(--color-accent); }
.norms .share { text-align: right; font-variant-numeric: tabular-nums; }
@media (max-width: 760px) {
  .page-row > .panel-column { order: -1; }
  #panel { border: 1px solid var(--border-color-primary) !important; border-radius: 8px; padding: 8px 12px; }
}
@media (max-width: 480px) {
  .tab-container button { padding: 0 6px !important; font-size: 0.85rem; }
  .strengths > .block:has(.strength-title) { flex: 1 1 100% !important; }
}
"""


#: On a telephone the panel is above the results, and begins folded.
_FOLD_PANEL = "() => { if (window.innerWidth <= 760) document.querySelector('#panel > .label-wrap')?.click(); }"


def build_page(studio: Studio) -> gr.Blocks:
    """The whole page around a studio."""
    with gr.Blocks(title="onelora_vision", analytics_enabled=False, delete_cache=(900, 7200)) as page:
        gr.Markdown(
            "# onelora_vision\nLoad, blend and compare adapters. Weights of the bases are never changed: "
            "an adapter takes part at the weight you give it.",
            elem_id="title",
        )
        panel = AdapterPanel(gr.State(0), gr.State(0), gr.State(Asked()), gr.State("generation"), gr.State(Asked()))
        kept = KeptSettings()
        with gr.Row(equal_height=False, elem_classes="page-row"):
            titles: dict[str, gr.HTML] = {}
            with gr.Column(scale=5, min_width=320), gr.Tabs() as tabs:
                with gr.Tab("Generate", id="generate") as generate_tab:
                    titles["generation"] = build_generate(studio, panel, page, kept)
                with gr.Tab("Depth", id="depth") as depth_tab:
                    titles["depth"] = build_depth(studio, panel, kept)
                with gr.Tab("Classify", id="classify") as classify_tab:
                    titles["classification"] = build_classify(studio, panel, page)
                with gr.Tab("Train", id="train") as train_tab:
                    build_train(studio, panel, page, kept, tabs)
                with gr.Tab("Details", id="details") as details_tab:
                    chosen = build_details(studio, panel, page, details_tab)
            tabs_of = [(generate_tab, "generation"), (depth_tab, "depth"), (classify_tab, "classification")]
            tabs_of += [(train_tab, ""), (details_tab, "")]
            with (
                gr.Column(scale=2, min_width=320, elem_classes="panel-column"),
                gr.Accordion("Adapters", open=True, elem_id="panel"),
            ):
                build_panel(studio, panel, tabs, chosen)
        page.load(None, None, None, js=_FOLD_PANEL)
        for tab, task in tabs_of:
            tab.select(lambda task=task: task, None, panel.tab, api_visibility="private", **QUICK)

        kept.connect(studio, page)
        name_strengths(studio, panel, page, titles)
        build_api(studio)

        def leave(request: gr.Request):
            studio.sessions.close(request.session_hash)

        page.unload(leave)
    return page
