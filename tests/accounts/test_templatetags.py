from __future__ import annotations

import pytest

from accounts.templatetags import laurel


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("**b** *i* `c`", "<p><strong>b</strong> <em>i</em> <code>c</code></p>"),
        ("# Title", "<h4>Title</h4>"),
        ("one\ntwo", "<p>one<br>\ntwo</p>"),
        ("<b onclick=x>raw</b>", "<p>&lt;b onclick=x&gt;raw&lt;/b&gt;</p>"),
        ("[x](javascript:alert(1))", "<p>[x](javascript:alert(1))</p>"),
        ("```py\n<i>\n```", "<pre><code>&lt;i&gt;\n</code></pre>"),
        ("", ""),
    ],
)
def test_it_renders_markdown(source: str, expected: str) -> None:
    assert laurel.markdown(source).strip() == expected


@pytest.mark.parametrize(
    "source",
    [
        "<img src=x onerror=alert(1)>",
        "![x](https://elsewhere.example/x.png)",
        "<style>body{display:none}</style>",
        "[x](data:text/html;base64,PHNjcmlwdD4=)",
        "<a href='vbscript:x'>x</a>",
        "</div></section><form action=/logout/ method=post>",
    ],
)
def test_it_lets_no_markup_of_others_through(source: str) -> None:
    html = laurel.markdown(source)
    for word in ("<img", "<style", "<form", "</div", 'href="data', 'href="vb', "<script"):
        assert word not in html


def test_it_opens_links_apart_and_names_nobody() -> None:
    html = laurel.markdown("[x](https://elsewhere.example/)")
    assert 'target="_blank"' in html
    assert 'rel="noopener noreferrer nofollow"' in html


def test_it_shows_an_endless_text_without_formatting() -> None:
    html = laurel.markdown("**x** " * 20_000)
    assert "<strong>" not in html
    assert html.startswith('<p class="prose plain">**x**')


def test_it_survives_deep_nesting() -> None:
    assert laurel.markdown("> " * 5_000 + "x")
    assert laurel.markdown("[" * 20_000)
    assert laurel.markdown("*a **b " * 5_000)


@pytest.mark.parametrize(
    ("state", "kind"),
    [("open", "good"), ("running", "busy"), ("paused", "warn"), ("failed", "bad"), ("x", "quiet")],
)
def test_it_shows_a_state_as_a_word(state: str, kind: str) -> None:
    assert laurel.state_badge(state) == f'<span class="state state-{kind}">{state}</span>'


def test_it_writes_numbers_for_people() -> None:
    assert laurel.number(12345.678) == "12,346"
    assert laurel.number(0.1234, 2) == "0.12"
    assert laurel.number(None) == "–"
    assert laurel.percent(0.756) == "76 %"
    assert [laurel.duration(s) for s in (0.42, 42, 200, 7500)] == [
        "0.4 s",
        "42 s",
        "3 min 20 s",
        "2 h 5 min",
    ]
    assert laurel.letter(3) == "D"
    assert laurel.excerpt("one two  three", 8) == "one two …"
