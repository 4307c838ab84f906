"""page: a bundle as a folder that a browser runs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from qia3.cli.options import FILE, as_json, example, serving
from qia3.console import print_result


@click.command(
    epilog=example(
        "qia3 page dist/home-browser --output dist/page --runtime runtime",
        "qia3 page dist/home-browser --output dist/page --runtime runtime --serve",
    )
)
@click.argument("bundle", type=FILE)
@click.option("--output", type=FILE, required=True, help="The page's folder; an older page there is replaced.")
@click.option(
    "--runtime",
    "packages",
    type=FILE,
    default=Path("node_modules"),
    show_default=True,
    help="The folder where npm installed onnxruntime-web and @huggingface/tokenizers.",
)
@click.option(
    "--piece", type=click.IntRange(1, 2000), default=1024, show_default=True, help="Maximum size of a file, in MiB."
)
@click.option("--serve", is_flag=True, help="Then serve it, with the headers that threads need.")
@click.option("--host", default="127.0.0.1", show_default=True, help="With --serve: the address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="With --serve: the port.")
@as_json
def page(
    bundle: Path, output: Path, packages: Path, piece: int, serve: bool, host: str, port: int, as_json: bool
) -> None:
    """Make a web page that runs a bundle in the browser, offline after the first visit.

    BUNDLE must be exported with --target browser or browser-wasm. The page is a folder of plain files for any web
    server.
    """
    from qia3.bundle.opened import Bundle
    from qia3.page import write_page

    sockets = None
    if serve:  # an address in use is reported before anything is written
        with serving("page --serve"):
            from qia3.server.listen import bound
            from qia3.server.static import serve_files
        sockets = bound(host, port)
    made = write_page(Bundle.open(bundle), output, packages, piece * 2**20)
    sizes = f"{made.bytes / 1e6:.1f} MB, of which a visit fetches {made.wasm_bytes / 1e6:.1f} on WebAssembly"
    text = f"{output} is a page: {sizes}"
    if made.webgpu_bytes is not None:
        text += f" and {made.webgpu_bytes / 1e6:.1f} on WebGPU"
    print_result(asdict(made), text, as_json)
    if sockets is not None:
        serve_files(output, host, sockets)
