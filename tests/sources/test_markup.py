"""Captions in marked-up texts: tables in LaTeX, lists and tables in Markdown, lists in plain text."""

from __future__ import annotations

import pytest
from support.photos import ONE_EACH, TEXTS, album, captions, put, read

PAIRS = [(f"{i}.jpg", text) for i, text in enumerate(TEXTS, 1)]


@pytest.fixture
def photos(tmp_path):
    album(tmp_path / "images")
    return tmp_path


def each(form: str) -> str:
    """A line for each photo, from a form with NAME, TEXT and NO in it."""
    lines = (
        form.replace("NAME", name).replace("TEXT", text).replace("NO", str(i))
        for i, (name, text) in enumerate(PAIRS, 1)
    )
    return "".join(f"{line}\n" for line in lines)


@pytest.mark.parametrize("mark", ["- ", "* ", "+ ", "\u2022 ", "NO. ", "NO) ", "[NO] ", "- [ ] ", "  - ", "\t* "])
@pytest.mark.parametrize("sign", [": ", " - ", " \u2013 ", ", ", "\t", " | ", " -> "])
def test_a_list_is_read_whatever_its_marks(photos, mark, sign):
    source = read(put(photos / "captions.txt", each(f"{mark}NAME{sign}TEXT")))
    assert captions(source) == ONE_EACH


LISTS = {
    "bold": "- **NAME**: TEXT",
    "bold with its colon": "* **NAME:** TEXT",
    "code": "- `NAME` - TEXT",
    "quoted": '- "NAME": "TEXT"',
    "a link": "- [NAME](images/NAME): TEXT",
    "a picture": "![TEXT](images/NAME)",
    "a picture in a list": "1. ![TEXT](images/NAME)",
    "without suffix": "- photo_NO: TEXT",
}


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("title", ["", "# Our trip\n\n", "Our trip\n========\n\n", "What we saw:\n"])
def test_a_list_in_markdown_is_read_below_its_title(tmp_path, kind, title):
    names = "images/photo_{}.jpg" if kind == "without suffix" else "images/{}.jpg"
    for i in range(1, 5):
        album(tmp_path / "images", count=1, start=i)
        (tmp_path / "images" / f"{i}.jpg").rename(tmp_path / names.format(i))
    put(tmp_path / "captions.md", title + each(LISTS[kind]))
    assert captions(read(tmp_path)) == ONE_EACH


def test_an_entry_goes_on_in_indented_lines_and_other_lines_are_counted(photos):
    lines = [f"- {name}: {text[:6]}\n  {text[6:]}\n" for name, text in PAIRS]
    text = "".join([*lines[:2], "## The second day\n\n", *lines[2:], "That is all.\n"])
    source = read(put(photos / "captions.md", text))
    assert captions(source) == [(f"{text[:6].strip()} {text[6:].strip()}",) for text in TEXTS]
    assert source.rows_left_out == 1


@pytest.mark.parametrize("name", ["{}. photo.jpg", "- {}.jpg", "({}) a.jpg"])
@pytest.mark.parametrize("head", ["image,caption\n", ""])
def test_what_looks_like_a_mark_may_be_a_part_of_the_name(tmp_path, name, head):
    for i in range(1, 5):
        album(tmp_path, count=1, start=i)
        (tmp_path / f"{i}.jpg").rename(tmp_path / name.format(i))
    rows = "".join(f"{name.format(i)},{text}\n" for i, text in enumerate(TEXTS, 1))
    source = read(put(tmp_path / "caps.csv", head + rows))
    assert sorted(captions(source)) == sorted(ONE_EACH) and source.seen == 4


def tabular(rows: str, kind: str = "tabular", columns: str = "{ll}") -> str:
    """A table in LaTeX."""
    return f"\\begin{{{kind}}}{columns}\n{rows}\\end{{{kind}}}\n"


HEAD = "image & caption \\\\ \\midrule\n"
ROW = "NAME & TEXT \\\\"
ROWS = each(ROW)
FOOT = "\\multicolumn{2}{r}{more} \\\\\n\\endfoot\n"
PAPER = "\\documentclass{article}\n\\begin{document}\nText & more.\n\\begin{table}[h] % wide\n\\caption{Ours}\n"
LATEX = {
    "bare rows": ROWS,
    "a table": tabular(f"\\toprule\n{HEAD}{ROWS}\\bottomrule\n"),
    "no header": tabular(each(f"{ROW} \\hline"), columns="{l|l}\\hline"),
    "in a document": PAPER + tabular(HEAD + ROWS, columns="{|l|p{5cm}|}") + "\\end{table}\n\\end{document}\n",
    "of pandas": tabular(f"\\toprule\n & {HEAD}{each(f'NO & {ROW}')}\\bottomrule\n", columns="{lll}"),
    "long": tabular(f"\\caption{{Ours}} \\\\\n{HEAD}\\endfirsthead\n{HEAD}\\endhead\n{FOOT}{ROWS}", "longtable"),
    "wide": tabular(f"\\textbf{{image}} & \\textbf{{caption}} \\\\\n{ROWS}", "tabularx", "{\\textwidth}{lX}"),
    "rows over lines": tabular(HEAD + each("NAME &\n  TEXT\n \\\\")),
    "one line": tabular(HEAD + ROWS).replace("\n", " "),
    "no end of the last row": tabular(HEAD + ROWS.rstrip().removesuffix("\\\\")),
    "two tables": "".join(tabular(HEAD + "".join(ROWS.splitlines(True)[i : i + 2])) for i in (0, 2)),
    "names set in another font": tabular(each("\\texttt{NAME} & \\emph{TEXT} \\\\")),
    "pictures": tabular(HEAD + each("\\includegraphics[width=2cm]{images/NAME} & TEXT \\\\")),
}


@pytest.mark.parametrize("kind", LATEX)
@pytest.mark.parametrize("name", ["captions.tex", "captions.txt"])
def test_a_table_in_latex_is_read(photos, kind, name):
    put(photos / name, LATEX[kind])
    assert captions(read(photos)) == ONE_EACH


def test_the_signs_of_latex_become_those_of_a_caption(tmp_path):
    album(tmp_path / "images", count=1)
    (tmp_path / "images" / "1.jpg").rename(tmp_path / "images" / "img_1.jpg")
    cell = "caf\\'e, na\\\"{\\i}ve gar\\c{c}on: ``salt \\& pepper'', 5\\% off, \\$3~each, \\textbf{so \\emph{big}}"
    put(
        tmp_path / "t.tex",
        f"\\begin{{tabular}}{{ll}}\nimage & caption \\\\\nimg\\_1.jpg & {cell} \\\\\n\\end{{tabular}}\n",
    )
    expected = 'café, naïve garçon: "salt & pepper", 5% off, $3 each, so big'
    assert captions(read(tmp_path / "t.tex")) == [(expected,)]


@pytest.mark.parametrize("name", ["`NAME`", "**NAME**", "![](images/NAME)", '<img src="images/NAME" width="90">'])
def test_a_table_in_markdown_is_read_whatever_is_around_its_names(photos, name):
    put(photos / "captions.md", "# Ours\n\n| image | caption |\n|:--|:--|\n" + each(f"| {name} | TEXT |"))
    assert captions(read(photos)) == ONE_EACH


@pytest.mark.parametrize("form", ["- {}\n- {} again\n", "1. {}\n2. {} again\n", '"{}"\n"{} again"\n'])
def test_marks_and_quotes_of_all_lines_of_a_caption_file_are_no_part_of_its_captions(tmp_path, form):
    album(tmp_path)
    for i, text in enumerate(TEXTS, 1):
        put(tmp_path / f"{i}.txt", form.format(text, text))
    assert captions(read(tmp_path)) == [(text, f"{text} again") for text in TEXTS]


def test_a_sign_or_number_in_front_of_one_caption_stays(tmp_path):
    texts = ["1. FC wins a match", 'a "big" dog', '"stop", says a sign', "- a red kite\nwith a tail"]
    album(tmp_path)
    for i, text in enumerate(texts, 1):
        put(tmp_path / f"{i}.txt", text)
    assert captions(read(tmp_path)) == [*((text,) for text in texts[:3]), ("- a red kite", "with a tail")]
