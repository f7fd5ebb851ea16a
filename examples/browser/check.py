#!/usr/bin/env python3
"""Builds the page and opens it.

    examples/browser/check.py                     in a Chromium without a window, once; the exit status tells
    examples/browser/check.py --serve             on http://127.0.0.1:8080, until it is stopped

Needs rustup's target wasm32-unknown-unknown, wasm-bindgen (cargo install wasm-bindgen-cli, of the version in
Cargo.lock) and, for the check, chromium. There it runs on SwiftShader, a software adapter that Chromium brings.
"""

import argparse
import functools
import http.server
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading

FOLDER = pathlib.Path(__file__).resolve().parent
TARGET = FOLDER.parent.parent / "target" / "browser"
LIBRARY = TARGET / "wasm32-unknown-unknown" / "release" / "dilated_attention_browser.wasm"
SERVED = TARGET / "page"
NUM_TOKENS = 4096
PATIENCE_SECONDS = 240


def build():
    subprocess.run(
        ["cargo", "build", "--release", "--target", "wasm32-unknown-unknown", "--target-dir", TARGET],
        cwd=FOLDER,
        check=True,
    )
    shutil.rmtree(SERVED, ignore_errors=True)
    subprocess.run(
        ["wasm-bindgen", "--target", "web", "--no-typescript", "--out-dir", SERVED / "pkg", LIBRARY],
        check=True,
    )
    shutil.copy(FOLDER / "index.html", SERVED)


class Page(http.server.SimpleHTTPRequestHandler):
    """Serves the folder, and takes what the page found."""

    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        self.server.result = json.loads(self.rfile.read(length))
        self.send_response(204)
        self.end_headers()
        self.server.answered.set()

    def log_message(self, *_):
        pass


def server(port):
    made = http.server.ThreadingHTTPServer(
        ("127.0.0.1", port), functools.partial(Page, directory=SERVED)
    )
    made.result, made.answered = None, threading.Event()
    return made


def check():
    with server(0) as page, tempfile.TemporaryDirectory() as profile:
        threading.Thread(target=page.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{page.server_port}/index.html?check={NUM_TOKENS}"
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--enable-unsafe-webgpu",
            "--use-webgpu-adapter=swiftshader",
            f"--user-data-dir={profile}",
        ]
        browser = subprocess.Popen(
            ["chromium", *flags, url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            page.answered.wait(PATIENCE_SECONDS)
        finally:
            browser.terminate()
            browser.wait()
        page.shutdown()
    if page.result is None:
        sys.exit(f"no result within {PATIENCE_SECONDS} seconds")
    print(page.result["text"])
    print(f"longest frame {page.result['longest']:.0f} ms")
    if not page.result["passed"]:
        sys.exit("failed")


def main():
    arguments = argparse.ArgumentParser(description="Builds the page and opens it.")
    arguments.add_argument("--serve", action="store_true", help="until it is stopped")
    serve = arguments.parse_args().serve
    build()
    if not serve:
        check()
        return
    with server(8080) as page:
        print("http://127.0.0.1:8080")
        try:
            page.serve_forever()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
