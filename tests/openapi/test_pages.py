"""/docs in a browser: Swagger UI from our own origin, under a strict policy, sends a request with a key."""

import os
import re
import shutil
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from api.app import create_app
from api.auth.keys import make_api_key
from tests.support.serving import serve, settings_for
from tests.support.users import assert_problem

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
HIDE_KEY = """key => {
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
    while (texts.nextNode()) texts.currentNode.data = texts.currentNode.data.replaceAll(key, "users_…")
}"""
"""Replaces the key in the command that the page shows."""
needs_chromium = pytest.mark.skipif(CHROMIUM is None and "CI" not in os.environ, reason="apt-get install chromium")


@pytest.fixture
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        # The system's browser: playwright's own would be a download.
        browser = playwright.chromium.launch(executable_path=CHROMIUM or "chromium is not installed", args=FLAGS)
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        page.set_default_timeout(30_000)
        expect.set_options(timeout=30_000)  # which has one of its own, of 5 s
        yield page
        browser.close()


def operations(url: str) -> int:
    """How many operations the document has that the page shows."""
    return sum(map(len, httpx.get(f"{url}/openapi.json").json()["paths"].values()))


@needs_chromium
def test_somebody_tries_it_out(page: Page, database: str) -> None:
    """SCREENSHOT=FILE keeps the picture that docs/api.md shows."""
    complaints: list[str] = []
    asked: set[str] = set()
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(f"{request.url}: {request.failure}"))
    page.on("request", lambda request: asked.add(re.sub(r"(?<!/)/(?!/).*", "", request.url)))
    key, entry = make_api_key("browser", read_only=False)
    with serve(create_app(settings_for(database, api_keys=entry))) as url:
        page.goto(f"{url}/docs")
        expect(page.locator(".opblock")).to_have_count(operations(url))

        page.get_by_role("button", name="Authorize").first.click()
        page.get_by_label("auth-bearer-value").fill(key)
        page.get_by_role("button", name="Apply credentials").click()
        page.get_by_role("button", name="Close").last.click()

        create = page.locator("#operations-users-create_user")
        create.locator(".opblock-summary-control").click()
        create.get_by_role("button", name="Try it out").click()
        create.get_by_role("button", name="Execute").click()
        answer = create.locator(".live-responses-table")
        expect(answer.locator(".response-col_status").last).to_contain_text("201")
        expect(answer.locator(".response-col_description").last).to_contain_text("ada@example.com")
        create.locator(".opblock-summary-control").click()

        read = page.locator("#operations-users-get_user")
        read.locator(".opblock-summary-control").click()
        read.get_by_role("button", name="Try it out").click()
        read.get_by_placeholder("id").fill("1")
        read.get_by_role("button", name="Execute").click()
        answer = read.locator(".live-responses-table")
        expect(answer.locator(".response-col_status").last).to_contain_text("200")
        expect(answer.locator(".response-col_description").last).to_contain_text('"email": "ada@example.com"')
        if "SCREENSHOT" in os.environ:
            page.evaluate("scrollTo(0, 0)")
            page.evaluate(HIDE_KEY, key)
            box = answer.bounding_box()
            assert box is not None
            page.screenshot(
                path=os.environ["SCREENSHOT"],
                clip={"x": 0, "y": 0, "width": 1200, "height": box["y"] + box["height"]},  # with the answer
                full_page=True,
            )
    assert complaints == []
    assert asked - {"data:"} == {url}


@needs_chromium
def test_a_script_in_the_page_is_not_run(page: Page, database: str) -> None:
    """The policy is what stops it, and the browser says so."""
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    with serve(create_app(settings_for(database))) as url:
        page.goto(f"{url}/docs")
        expect(page.locator(".opblock")).to_have_count(operations(url))
        page.evaluate(
            "document.body.append(Object.assign(document.createElement('script'), {text: 'window.evil = 1'}))"
        )
        assert page.evaluate("window.evil") is None
    assert any("Content Security Policy" in complaint for complaint in complaints)


def test_the_root_leads_to_the_documentation(database: str) -> None:
    """Without a key, as the documentation itself."""
    with serve(create_app(settings_for(database, api_keys=make_api_key("x", read_only=True)[1]))) as url:
        found = httpx.get(url)
        assert (found.status_code, found.headers["content-type"]) == (200, "application/json")
        assert list(found.json()) == ["documentation", "openapi"]
        for path in found.json().values():
            assert httpx.get(f"{url}{path}").status_code == 200
        assert httpx.head(url).headers["content-length"] == str(len(found.content))
        assert httpx.get(f"{url}/?x=1").content == found.content
        assert httpx.post(url).headers["allow"] == "GET, HEAD"
        for path in ("//", "/%0A", "/index", "/%2F"):
            assert httpx.get(f"{url}{path}").status_code == 401


def test_the_page_without_its_package(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.openapi.pages._assets", lambda: None)
    with serve(create_app(settings_for(database))) as url:
        missing = httpx.get(f"{url}/docs")
        assert missing.status_code == 404
        assert "pip install --no-deps flask-swagger-ui" in missing.json()["detail"]
        assert httpx.get(f"{url}/docs/swagger-ui.css").status_code == 404
        assert httpx.get(f"{url}/openapi.json").status_code == 200


def test_the_policy_and_the_assets(database: str) -> None:
    with serve(create_app(settings_for(database))) as url:
        policy = httpx.get(f"{url}/docs").headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        for asset, media_type in (("swagger-ui.css", "text/css"), ("swagger-ui-bundle.js", "javascript")):
            found = httpx.get(f"{url}/docs/{asset}")
            assert found.status_code == 200
            assert media_type in found.headers["content-type"]
            assert "max-age" in found.headers["cache-control"]
            assert "sourceMappingURL=http" not in found.text


@pytest.fixture(scope="module")
def docs() -> Iterator[httpx.Client]:
    app = create_app(settings_for("postgresql://ada:sesame@127.0.0.1:1/x"))
    with serve(app) as url, httpx.Client(base_url=url) as client:
        yield client


@pytest.mark.parametrize(
    "path", ["/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js", "/docs/start.js", "/docs", "/openapi.json"]
)
def test_what_a_browser_has_is_not_sent_again(docs: httpx.Client, path: str) -> None:
    first = docs.get(path)
    tag = first.headers["etag"]
    for header in (tag, f"W/{tag}", f'"x", {tag}', "*"):
        unchanged = docs.get(path, headers={"if-none-match": header})
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        for name in ("etag", "cache-control", "x-content-type-options"):
            assert unchanged.headers[name] == first.headers[name]
    for headers in ({"if-none-match": '"x"'}, {"if-none-match": f"{tag} x"}, {"if-match": tag}, {"if-match": "*"}):
        assert docs.get(path, headers=headers).content == first.content
    assert_problem(docs.get(path, headers={"if-match": '"x"'}), 412, "version-mismatch")


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [
        ("bytes=0-9", 0, 10),
        ("Bytes=10-", 10, None),
        ("bytes=-10", -10, None),
        ("bytes=0-999999999", 0, None),
        ("bytes=0-" + "9" * 4000, 0, None),
        ("bytes=-999999999", 0, None),
    ],
)
def test_a_part_of_a_file(docs: httpx.Client, header: str, start: int, end: int | None) -> None:
    whole = docs.get("/docs/swagger-ui.css").content
    part = docs.get("/docs/swagger-ui.css", headers={"range": header})
    assert (part.status_code, part.content) == (206, whole[start:end])
    first = start % len(whole)
    assert part.headers["content-range"] == f"bytes {first}-{first + len(part.content) - 1}/{len(whole)}"
    assert part.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "header",
    [
        *(
            "items=0-9",
            "bytes",
            "bytes=",
            "bytes=a-b",
            "bytes=9-5",
            "bytes=0-1,5-9",
            "bytes=-",
            "seconds=99999999-",
            "=",
        ),
        "bytes=" + "9" * 5000 + "-",
    ],
)
def test_a_range_that_is_not_understood_is_ignored(docs: httpx.Client, header: str) -> None:
    """RFC 9110, section 14.2."""
    assert docs.get("/docs/swagger-ui.css", headers={"range": header}).status_code == 200


@pytest.mark.parametrize("header", ["bytes=99999999-", "bytes=99999999-5", "bytes=-0", "bytes=" + "9" * 400 + "-"])
def test_a_range_that_is_not_there(docs: httpx.Client, header: str) -> None:
    whole = docs.get("/docs/swagger-ui.css")
    refused = docs.get("/docs/swagger-ui.css", headers={"range": header})
    assert_problem(refused, 416)
    assert refused.headers["content-range"] == f"bytes */{len(whole.content)}"
    assert refused.headers["x-content-type-options"] == "nosniff"
    # It is not looked at for another method, nor if it was meant for another version.
    assert docs.head("/docs/swagger-ui.css", headers={"range": header}).status_code == 200
    for validator, status in {'"x"': 200, f"W/{whole.headers['etag']}": 200, whole.headers["etag"]: 416}.items():
        assert docs.get("/docs/swagger-ui.css", headers={"range": header, "if-range": validator}).status_code == status
