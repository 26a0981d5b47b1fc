"""Wikipedia, of a dump and as Wikitext-103: which documents, in which split, and what is said of bad files."""

from __future__ import annotations

import bz2
import sys
import zipfile
from pathlib import Path

import pandas
import pytest
from corpus_documents import SPLITS, all_documents, flat, made

from cope.corpora.base import split_by_hash
from cope.corpora.wiki_markup import plain_text
from cope.corpora.wikitext103 import articles
from cope.errors import UserError

MARKUP = """{{Infobox|name=[[Gone]]}}
'''Anarchism''' ({{IPA|x}}; from Greek) is a [[some thought|philosophy]]<ref name="a">{{cite|b}}</ref> of [[state]]s&nbsp;here.
[[File:Picture.jpg|thumb|A [[linked]] caption]]
<!-- a comment -->
== History ==
{| class="wikitable"
! a cell
|}
=== Early ===
* one [http://example.org entry]
# another , <math>x^2</math>entry
: it was {{convert|3|m}}
<gallery>
File:A.jpg
</gallery>
== References ==
{{reflist}}
[[Category:Politics]] [[de:Anarchismus]]
"""


def test_markup_becomes_plain_text() -> None:
    assert plain_text("Anarchism", MARKUP) == (
        " = Anarchism = \n\n"
        "Anarchism (from Greek) is a philosophy of states here.\n"
        "\n = = History = = \n\n"
        "\n = = = Early = = = \n\n"
        "one entry\nanother, entry\nit was\n"
    )


def page(title: str, text: str, namespace: int = 0, redirect: str = "") -> str:
    inner = f"<title>{title}</title><ns>{namespace}</ns>{redirect}<revision><text>{text}</text></revision>"
    return f"<page>{inner}</page>"


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    pages = [page(f"Title {number}", f"'''Text''' {number} &lt;ref&gt;gone&lt;/ref&gt;") for number in range(40)]
    pages += [page("Talk:A", "talk", 1), page("Old", "#REDIRECT [[New]]", redirect='<redirect title="New" />')]
    path = tmp_path / "dump.xml"
    namespace = "http://www.mediawiki.org/xml/export-0.10/"
    path.write_text(f'<mediawiki xmlns="{namespace}"><siteinfo/>{"".join(pages)}</mediawiki>')
    return path


@pytest.mark.parametrize("suffix", [".xml", ".xml.bz2", ".whl"])
def test_a_dump_is_split_by_title(dump: Path, suffix: str) -> None:
    path = dump.with_name(f"source{suffix}")
    if suffix == ".whl":
        with zipfile.ZipFile(path, "w") as wheel:
            member = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
            wheel.writestr(member, bz2.compress(dump.read_bytes()))
    else:
        path.write_bytes(bz2.compress(dump.read_bytes()) if suffix == ".xml.bz2" else dump.read_bytes())
    corpus = made("enwiki_sample", source=str(path), validation_fraction=0.2, test_fraction=0.2)
    documents = all_documents(corpus)
    assert sum(map(len, documents.values())) == 40  # no redirects, no talk
    for split, texts in documents.items():
        titles = [text.split(" = ")[1] for text in texts]
        assert titles == [f"Title {n}" for n in range(40) if split_by_hash(f"Title {n}", 0.2, 0.2) == split]
    assert " = Title 7 = \n\nText 7\n" in flat(corpus)


def test_damaged_and_missing_dumps_are_told(dump: Path) -> None:
    with pytest.raises(UserError, match=r"corpus\.source=.*there is no file.*allowed: gensim"):
        made("enwiki_sample", source="/nowhere/dump.xml")
    dump.write_bytes(dump.read_bytes()[:1000])
    with pytest.raises(UserError, match="is not a Wikipedia dump, or damaged"):
        list(made("enwiki_sample", source=str(dump)).documents("train"))
    packed = dump.with_suffix(".bz2")
    packed.write_bytes(b"not packed")
    with pytest.raises(UserError, match="is not a Wikipedia dump, or damaged"):
        list(made("enwiki_sample", source=str(packed)).documents("train"))


def test_the_installed_sample_is_found_without_importing_gensim() -> None:
    first = next(made("enwiki_sample").documents("test"))
    assert first.startswith(" = ") and len(first) > 500
    assert "gensim" not in sys.modules


def test_articles_begin_at_titles_after_an_empty_line() -> None:
    lines = [
        "",
        " = First = \n",
        "",
        " Text \n",
        " = not a title = \n",
        "",
        " = = Section = = \n",
        "",
        " = Second = One = \n",
        "",
    ]
    assert list(articles(lines)) == [
        " = First = \n\n Text \n = not a title = \n\n = = Section = = \n\n",
        " = Second = One = \n\n",
    ]


@pytest.fixture
def wikitext(tmp_path: Path) -> Path:
    for variant in ("wikitext-103-raw-v1", "wikitext-103-v1"):
        folder = tmp_path / "wikitext" / variant
        folder.mkdir(parents=True)
        for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001", "test-00000-of-00001"):
            rows = ["", f" = {name} = \n", "", f" {variant} \n", "", " = = Section = = \n"]
            pandas.DataFrame({"text": rows}).to_parquet(folder / f"{name}.parquet")
    return tmp_path / "wikitext"


@pytest.mark.parametrize("variant", ["raw", "tokenised"])
def test_wikitext_keeps_its_own_splits(variant: str, wikitext: Path) -> None:
    documents = all_documents(made("wikitext103", source=str(wikitext), variant=variant))
    assert [len(documents[split]) for split in SPLITS] == [2, 1, 1]
    folder = "wikitext-103-raw-v1" if variant == "raw" else "wikitext-103-v1"
    assert documents["test"] == [f" = test-00000-of-00001 = \n\n {folder} \n\n = = Section = = \n"]
    assert documents["train"][1].startswith(" = train-00001-of-00002 = \n")
    assert (
        made("wikitext103", source=str(wikitext), variant="raw").identity()
        != made("wikitext103", source=str(wikitext), variant="tokenised").identity()
    )


def test_wikitext_settings_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"corpus\.variant=raww.*Did you mean 'raw'"):
        made("wikitext103", variant="raww")
    with pytest.raises(UserError, match=r"corpus\.source=hubb is not a folder.*Did you mean 'hub'"):
        made("wikitext103", source="hubb")
    with pytest.raises(UserError, match=r"there is no file train\.parquet or train-\*\.parquet"):
        list(made("wikitext103", source=str(tmp_path)).documents("train"))
