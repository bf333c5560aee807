"""One running app per test process, a client of it, and a headless Chromium where one is installed."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCREENS = ROOT / "out" / "ci" / "screens"
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="session")
def outside() -> Iterator[list[str]]:
    """Addresses beyond this machine that Python connects to; the test of the whole page expects none."""
    found: list[str] = []
    plain = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(("127.", "::1")):
            found.append(str(address))
        return plain(self, address)

    socket.socket.connect = connect  # type: ignore[method-assign]
    yield found
    socket.socket.connect = plain  # type: ignore[method-assign]


@pytest.fixture(scope="session")
def app(outside: list[str]) -> Iterator[Any]:
    """The whole app, serving on a free port; shipped weights only."""
    pytest.importorskip("gradio", reason="the app needs gradio: pip install 'mm[app]'")
    os.environ["HF_HUB_OFFLINE"] = "1"
    from mm.app.demo import running

    with running(port=free_port()) as page:
        yield page


def free_port() -> int:
    """A port that nobody listens on; every test process takes its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def client(app: Any) -> Iterator[Any]:
    """A new session through `gradio_client`, as a script would use the app: `client.predict(..., api_name="/ask")`."""
    from gradio_client import Client

    session = Client(app.local_url, verbose=False, analytics_enabled=False)
    yield session
    session.close()


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A file that calls itself a picture, sound, scan or part and is none: rename it as needed."""
    path = tmp_path / "broken.png"
    path.write_bytes(b"this is no picture at all\n" * 40)
    return path


@pytest.fixture(scope="session")
def _driver() -> Iterator[Any]:
    selenium = pytest.importorskip("selenium", reason="browser tests need selenium: pip install -e '.[dev]'")
    if not (CHROMIUM and DRIVER):
        pytest.skip("browser tests need Debian's packages chromium and chromium-driver")
    from selenium.webdriver.chrome.service import Service

    options = selenium.webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in (
        "--headless=new",
        "--no-sandbox",  # it runs as root in containers
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--window-size=1280,1000",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # whatever the page asks the network for fails
    ):
        options.add_argument(option)
    driver = selenium.webdriver.Chrome(options, Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def browser(app: Any, _driver: Any) -> Iterator[Screen]:
    """The app freshly loaded in Chromium at desktop size."""
    _driver.set_window_size(1280, 1000)
    yield Screen(_driver, app.local_url)


class Screen:
    """What a person does with the page; every wait ends in a failure that names what was waited for.

    Components are found by their `elem_id`, which is "<tab>_<name>": `ask_picture`, `ask_run`, `ask_result`.
    """

    WAIT_S = 60

    def __init__(self, driver: Any, url: str) -> None:
        self.driver, self.url = driver, url
        self.load()

    def load(self, query: str = "") -> None:
        """Open the page; `query` "?__theme=dark" gives the dark one."""
        self.driver.get(self.url + query)
        self.until(lambda: self.find("button[role=tab]"), "the tabs")

    def find(self, css: str) -> list[Any]:
        """Elements that match a CSS selector now."""
        return self.driver.find_elements("css selector", css)

    def until(self, ready: Any, what: str) -> Any:
        """What `ready()` gives as soon as it is true."""
        from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
        from selenium.webdriver.support.wait import WebDriverWait

        try:
            wait = WebDriverWait(self.driver, self.WAIT_S, 0.1, [StaleElementReferenceException])
            return wait.until(lambda _: ready())
        except TimeoutException:
            self.shot("waiting")
            raise AssertionError(f"no {what} after {self.WAIT_S} s; the page shows: {self.text()[:800]}") from None

    def text(self, css: str = "body") -> str:
        """Visible text of the first match, "" without one."""
        return next((element.text for element in self.find(css)), "")

    def tab(self, title: str) -> None:
        """Go to a tab by its title."""
        named = [button for button in self.find("button[role=tab]") if button.text.strip() == title]
        assert named, f"no tab {title!r}"
        named[0].click()

    def click(self, name: str) -> None:
        """Press the button with this `elem_id` as soon as it is there."""
        self.until(lambda: [b for b in self.find(f"#{name}") if b.is_displayed() and b.is_enabled()], name)[0].click()

    def upload(self, name: str, path: Path) -> None:
        """Give a file to the upload component with this `elem_id`, in place of what it shows."""
        field = f"#{name} input[type=file]"
        self.until(lambda: self.find(f"#{name}"), name)
        if not self.find(field):  # an example is in place: its cross brings the field back
            self.until(lambda: self.find(f"#{name} button[aria-label=Clear]"), f"the cross of {name}")[0].click()
        self.until(lambda: self.find(field), field)[0].send_keys(str(path))

    def toast(self) -> str:
        """The message of an error, as the person sees it."""
        return self.until(lambda: self.text(".toast-body"), "error message")

    def shot(self, name: str) -> Path:
        """Keep a picture of the page in out/ci/screens."""
        SCREENS.mkdir(parents=True, exist_ok=True)
        self._wait_for_pictures()
        self.driver.save_screenshot(str(SCREENS / f"{name}.png"))
        return SCREENS / f"{name}.png"

    def _wait_for_pictures(self) -> None:
        """Up to five seconds until those on the page are loaded; a broken one counts as loaded."""
        for _ in range(50):
            if self.driver.execute_script("return [...document.images].every(image => image.complete)"):
                return
            time.sleep(0.1)
