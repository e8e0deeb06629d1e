"""``python -m app``: serve the studio on this machine."""

import argparse
import os
import tempfile
from pathlib import Path

from onelora_vision.command import exits_cleanly
from onelora_vision.errors import InputError


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(prog="python -m app", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for the whole network")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--adapters", metavar="DIR", help="folder of adapters that every user sees")
    parser.add_argument(
        "--bases", nargs="+", default=[], metavar="DIR", help="folders of base models that may be chosen"
    )
    parser.add_argument("--auth", metavar="USER:PASSWORD", help="ask for these")
    parser.add_argument(
        "--max_upload_mb", "--max-upload-mb", type=int, default=64, help="largest upload (default: 64)"
    )
    parser.add_argument("--max_queue", "--max-queue", type=int, default=32, help="requests that may wait")
    parser.add_argument("--jobs", type=int, default=2, help="requests that run a model at the same time")
    parser.add_argument("--device", help="cpu, cuda, … (default: cuda if there is one)")
    return parser.parse_args(argv)


def bases_of(folders: list[str]) -> dict[str, Path]:
    """The folders by their own names."""
    found = {}
    for folder in folders:
        path = Path(folder)
        if not path.is_dir():
            raise InputError(f"--bases {folder}: no such folder")
        if path.resolve().name in found:
            raise InputError(f"--bases {folder}: two folders are called {path.resolve().name}")
        found[path.resolve().name] = path
    return found


def credentials(text: str | None) -> tuple[str, str] | None:
    """``user:password`` as a pair."""
    if text is None:
        return None
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise InputError("--auth: expected USER:PASSWORD")
    return user, password


def serve(args: argparse.Namespace, root: Path, *, block: bool = True):
    """Open the page with the files of all its users below ``root``; returns it at once if not to ``block``.

    Raises:
        InputError: a flag that makes no sense.
    """
    for name in ("max_upload_mb", "max_queue", "jobs"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} is {getattr(args, name)}, but must be at least 1")
    auth, bases = credentials(args.auth), bases_of(args.bases)
    # Before gradio is imported, which keeps it: its files lie beside the sessions', and nobody is told that it runs.
    os.environ.setdefault("GRADIO_TEMP_DIR", str(root / "gradio"))
    os.environ["GRADIO_ANALYTICS_ENABLED"] = os.environ["GRADIO_RUN_HISTORY"] = "False"
    from app.inference import Studio
    from app.memory import trim_regularly
    from app.ui import CSS, THEME, build_page

    trim_regularly()
    page = build_page(Studio(args.adapters, bases, args.max_upload_mb << 20, root, args.device))
    page.queue(max_size=args.max_queue, default_concurrency_limit=args.jobs)
    page.launch(
        server_name=args.host,
        server_port=args.port,
        auth=auth,
        max_file_size=args.max_upload_mb << 20,
        share=False,
        inbrowser=False,
        prevent_thread_lock=not block,
        quiet=not block,
        theme=THEME,
        css=CSS,
        footer_links=["api", "settings"],
        ssr_mode=False,
    )
    return page


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    with tempfile.TemporaryDirectory(prefix="onelora-app-") as root:
        serve(parse(argv), Path(root))


if __name__ == "__main__":
    main()
