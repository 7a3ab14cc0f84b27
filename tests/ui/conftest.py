"""A server of the live view in a thread, and a headless Chromium."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tierfed.ui.server import listen
from ui.browser import FLAGS, Browser

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Serves a folder on a free port of this machine: folder -> address. Further arguments are those of `listen`."""
    running = []

    def begin(root: Path, **more: Any) -> str:
        listening = listen(root, **more)
        thread = threading.Thread(target=listening.server.run, kwargs={"sockets": [listening.sock]})
        thread.start()
        running.append((listening, thread))
        return listening.url

    yield begin
    for listening, thread in running:
        listening.server.should_exit = True
        thread.join()
        listening.sock.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A Chromium with a profile of its own. Screenshots go to $TIERFED_SCREENSHOTS, if that is set."""
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("needs chromium and chromedriver (apt-get install chromium chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    folder = os.environ.get("TIERFED_SCREENSHOTS")
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_page_load_timeout(120)
    try:
        yield Browser(driver, Path(folder) if folder else tmp_path_factory.mktemp("screenshots"))
    finally:
        driver.quit()
