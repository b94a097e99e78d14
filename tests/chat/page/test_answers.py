"""How an answer is drawn, and what it cannot do. The stub's model answers with what it was asked."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from tests.chat.helpers.browser import ChatPage

HOSTILE = """<form action="http://192.0.2.1/"><input name="password" type="password" autofocus>
<button>Log in</button></form>

<div style="position:fixed;inset:0;background:red" id="message" class="toast">covered</div>

<iframe src="http://192.0.2.1/"></iframe> <svg onload="window.ran = 1"><script>window.ran = 1</script></svg>

<img src=x onerror="window.ran = 1"> <a href="javascript:window.ran=1">go</a> <style>* {display: none}</style>

[run](javascript:window.ran=1) [data](data:text/html,hi) [relative](/gradio_api/info) <math><mtext></mtext></math>

```"><img src=x onerror=window.ran=1>
code
```

| <b onclick="window.ran=1">a</b> |
|---|
| <x-y> |

$\\href{javascript:window.ran=1}{x}$ $\\htmlStyle{position:fixed}{y}$ $\\includegraphics{http://192.0.2.1/x.png}$
"""

HEADINGS = {f"h{level}" for level in range(1, 7)}
TEXT = {"p", "ul", "ol", "li", "blockquote", "pre", "code", "em", "strong", "s", "a", "br", "hr", "span", "bdi", "div"}
TABLES = {"table", "thead", "tbody", "tr", "th", "td"}
COPY_BUTTON = {"button", "svg", "use"}
MATHS = {"math", "semantics", "annotation", "mrow", "mstyle", "mi", "mo", "mn", "mtext"}


def test_an_answer_with_html_shows_it_and_does_nothing(chat: ChatPage, echo: list[str]) -> None:
    chat.ask(HOSTILE)
    chat.wait_for_answer(1)
    chat.page.wait_for_timeout(500)  # for formulas, which are drawn once their library is there
    names = chat.answers.evaluate("answer => [...answer.querySelectorAll('*')].map(part => part.localName)")
    assert set(names) <= HEADINGS | TEXT | TABLES | COPY_BUTTON | MATHS
    attributes = chat.answers.evaluate(
        "answer => [...answer.querySelectorAll('*')].flatMap(part => part.getAttributeNames())"
    )
    assert not {"style", "id", "name", "src", "srcset", "onclick", "onerror", "onload", "action", "data"} & set(
        attributes
    )
    links = chat.answers.locator("a").evaluate_all("all => all.map(link => link.href)")
    assert set(links) == {"http://192.0.2.1/"}  # addresses that stand in the text, shown as they are
    assert chat.page.evaluate("window.ran") is None
    expect(chat.answers).to_contain_text('<input name="password"')
    assert chat.page.locator("#message").evaluate("box => box.tagName") == "TEXTAREA"
    expect(chat.questions).to_have_text(HOSTILE.strip(), use_inner_text=True)  # as it was typed


def test_the_page_runs_no_inline_script_and_sends_no_form(open_tab: Callable[..., ChatPage]) -> None:
    chat = open_tab(allowed_complaint="Content Security Policy")
    chat.page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.ran = 1";
            document.body.append(script);
            const form = document.createElement("form");
            form.action = "http://192.0.2.1/";
            document.body.append(form);
            form.submit();
            document.body.setAttribute("onclick", "window.ran = 1");
            document.body.click();
            const frame = document.createElement("iframe");
            frame.src = "/";
            document.body.append(frame);
        }"""
    )
    chat.page.wait_for_timeout(500)
    assert chat.page.evaluate("window.ran") is None
    assert chat.page.url.startswith("http://127.0.0.1")


def test_links_say_where_they_lead(chat: ChatPage, echo: list[str]) -> None:
    chat.ask(
        "[a bank](https://evil.example/login) and [https://good.example](https://evil.example/x) and "
        "[evil.example](http://evil.example@192.0.2.1/) and https://plain.example/path and [me](mailto:a@b.example)"
    )
    chat.wait_for_answer(1)
    links = chat.answers.locator("a")
    expect(links).to_have_count(5)
    for link in links.all():
        assert link.get_attribute("target") == "_blank"
        assert {"noopener", "noreferrer"} <= set(link.get_attribute("rel").split())
    expect(chat.answers).to_have_text(
        "a bank (evil.example) and https://good.example (evil.example) and evil.example (192.0.2.1) and "
        "https://plain.example/path and me (a@b.example)"
    )


def test_a_picture_in_an_answer_is_a_link_and_not_fetched(chat: ChatPage, echo: list[str]) -> None:
    chat.ask("![spy](http://192.0.2.1/pixel.png) seen ![](data:image/png;base64,AAAA)")
    chat.wait_for_answer(1)
    expect(chat.answers.locator("img")).to_have_count(0)
    expect(chat.answers).to_have_text("Picture: spy (192.0.2.1) seen ![](data:image/png;base64,AAAA)")


def test_maths_inline_and_in_blocks_and_prices(chat: ChatPage, echo: list[str]) -> None:
    chat.ask(
        "It costs $5 or $10.\n\nHere $a^2 + b^2$ and \\(c^2\\).\n\n$$\n\\frac{1}{\\sqrt{2}}\n$$\n\n"
        "\\[ \\int_0^1 x\\,dx \\]\n\n`$x$` and $\\nonsense{$ stay"
    )
    chat.wait_for_answer(1)
    expect(chat.answers.locator("math")).to_have_count(4)
    expect(chat.answers.locator(".maths.block math")).to_have_count(2)
    expect(chat.answers.locator(".maths.block mfrac").first).to_be_visible()
    expect(chat.answers.locator("p").first).to_have_text("It costs $5 or $10.")
    expect(chat.answers.locator("p").last).to_contain_text("$x$")
    assert chat.answers.locator("math").first.evaluate("math => math.namespaceURI").endswith("MathML")


def test_code_has_its_language_colors_and_a_copy_button(chat: ChatPage, echo: list[str]) -> None:
    chat.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    code = "def f(x):\n    return '<b>' + x  # note"
    chat.ask(f"```python\n{code}\n```\n\n- one\n  - two")
    chat.wait_for_answer(1)
    expect(chat.answers.locator(".code-name")).to_have_text("python")
    expect(chat.answers.locator(".hljs-keyword").first).to_have_text("def")
    expect(chat.answers.locator("pre code")).to_have_text(code, use_inner_text=True)
    expect(chat.answers.locator("li li")).to_have_text("two")
    chat.answers.get_by_label("Copy code").click()
    expect(chat.answers.get_by_text("Copied")).to_be_visible()
    assert chat.page.evaluate("navigator.clipboard.readText()") == code


def test_tables_and_task_lists(chat: ChatPage, echo: list[str]) -> None:
    chat.ask("| a | b |\n|---|--:|\n| 1 | 2 |\n\n- [x] done\n- [ ] open\n\n~~gone~~")
    chat.wait_for_answer(1)
    expect(chat.answers.locator("td").last).to_have_css("text-align", "right")
    expect(chat.answers.locator("li.task")).to_have_text(["☑ done", "☐ open"])
    expect(chat.answers.locator("input")).to_have_count(0)
    expect(chat.answers.locator("s")).to_have_text("gone")


def test_each_paragraph_has_its_own_direction(chat: ChatPage, echo: list[str]) -> None:
    chat.ask("שלום עולם\n\nhello")
    chat.wait_for_answer(1)
    directions = chat.answers.locator("p").evaluate_all("all => all.map(part => getComputedStyle(part).direction)")
    assert directions == ["rtl", "ltr"]
    expect(chat.questions).to_have_css("direction", "rtl")


def test_what_is_drawn_already_is_not_drawn_again(chat: ChatPage, echo: list[str]) -> None:
    chat.ask("the first paragraph\n\n" + "and a second one that goes on " * 12)
    expect(chat.answers.locator("p").nth(1)).to_contain_text("second")
    chat.answers.locator("p").first.evaluate("paragraph => { paragraph.marked = true }")
    chat.wait_for_answer(1)
    assert chat.answers.locator("p").first.evaluate("paragraph => paragraph.marked")


@pytest.mark.parametrize("text", ["$" * 2000, "[" * 2000, "*a_ " * 1000, "> " * 500 + "x", "`" * 1001, "\\(" * 1000])
def test_an_odd_text_does_not_hang_the_page(chat: ChatPage, text: str) -> None:
    parts = chat.page.evaluate(
        """async (text) => {
            const {drawMarkdown} = await import("/page/script/markdown.js");
            const element = document.createElement("div");
            drawMarkdown(element, text);
            return element.childElementCount;
        }""",
        text,
    )
    assert parts
