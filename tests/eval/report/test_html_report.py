"""The report: the table, and one offline page in which all text is escaped."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from unime.eval.benchmarks.mmeb import SETS
from unime.eval.report.gallery import Answer, Candidate, Gallery, Probe, build_galleries
from unime.eval.report.html_report import table, write_report
from unime.eval.report.paper_scores import PUBLISHED
from unime.eval.tasks import CompositionalTask, RetrievalTask, SimilarityTask, evaluate
from unime.openmoji.perturbations import KINDS


IMAGES = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
SCRIPT = "<script>alert('caption')</script>"
RETRIEVAL = [
    RetrievalTask(
        "scene_t2i",
        "retrieval",
        [{"text": SCRIPT, "instruction": "Find me & mine:"}, {"text": "green"}, {"text": "blue"}],
        [{"image": image} for image in IMAGES],
        [[0], [1], [2]],
    ),
    RetrievalTask("question", "vqa", [{"image": IMAGES[0], "text": "Which?"}], [{"text": "a"}, {"text": "b"}], [[1]]),
]
COMPOSITIONAL = [
    CompositionalTask(
        "swap_obj",
        [{"image": IMAGES[0]}],
        [{"text": "a cat beside a mat"}],
        [{"text": "a mat beside a cat"}],
    )
]


def encode(seed):
    generator = np.random.default_rng(seed)

    def embed(items):
        rows = generator.normal(size=(len(items), 8)).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    return embed


@pytest.fixture(scope="module")
def columns():
    return {
        title: evaluate(encode(seed), RETRIEVAL, COMPOSITIONAL, model=f"{title} model", progress=False)
        for seed, title in enumerate(["Before", "Stage <2>", "CLIP"])
    }


@pytest.fixture(scope="module")
def page(columns, tmp_path_factory):
    results = {title: column for title, (column, _) in columns.items()}
    shown = build_galleries(columns["Stage <2>"][1], RETRIEVAL, COMPOSITIONAL)
    curves = {"Loss <of> stage 2": {"Stage <2>": [(1, 2.0), (2, 1.0)], "CLIP": [(1, 2.0), (2, 1.5)]}, "Nothing": {}}
    path = tmp_path_factory.mktemp("report") / "new" / "report.html"
    credits = "Images: me & you"
    assert write_report(results, shown, curves, path, highlight="Stage <2>", credits=credits) == path
    return path.read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Checks that tags close in order; collects tags and addresses."""

    void = {"meta", "img", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.addresses = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_loads_nothing_from_outside(page):
    tags = Tags(page)
    assert tags.open == []
    assert tags.addresses and all(address.startswith(("data:image/png;base64,", "#")) for address in tags.addresses)
    assert 'loading="lazy"' not in page  # there is nothing to load
    assert "url(" not in page and "@import" not in page and "http" not in page


def test_a_script_in_a_caption_or_title_is_shown_and_does_not_run(page):
    assert "script" not in Tags(page).seen
    assert SCRIPT not in page
    assert "&lt;script&gt;alert(&#39;caption&#39;)&lt;/script&gt;" in page
    for text in ("Stage &lt;2&gt;", "Loss &lt;of&gt; stage 2", "me &amp; you", "Find me &amp; mine:"):
        assert text in page
    assert "Stage <2>" not in page


def test_the_page_shows_every_query_and_frames_its_positive(page):
    rows = page.split('<div class="answer">')[1:]
    assert len(rows) == 3 + 1
    for row in rows:
        assert row.split("</ol>")[0].count("candidate right") == 1


def test_words_that_differ_between_two_captions_are_marked(page):
    assert "a <mark>cat</mark> beside a <mark>mat</mark>" in page
    assert "a <mark>mat</mark> beside a <mark>cat</mark>" in page


def test_the_page_leaves_out_empty_sections(columns, tmp_path):
    results = {"Before": {**columns["Before"][0], "compositional": {}, "compositional_groups": {}}}
    path = write_report(results, [], {}, tmp_path / "report.html", highlight="Before", credits="")
    text = path.read_text(encoding="utf-8")
    assert Tags(text).open == []
    for title in ("Compositional understanding", "Learning curves", "Retrieval examples", "Largest errors"):
        assert title not in text


def test_galleries_hold_the_items_of_the_rankings(columns):
    scene, question, swap = build_galleries(columns["CLIP"][1], RETRIEVAL, COMPOSITIONAL)
    assert [gallery.name for gallery in (scene, question, swap)] == ["scene_t2i", "question", "swap_obj"]
    assert all(isinstance(answer, Answer) and len(answer.top) == 3 for answer in scene.examples)
    assert [answer.query["text"] for answer in scene.examples] == [SCRIPT, "green", "blue"]
    for answer, image in zip(scene.examples, IMAGES, strict=True):
        assert answer.right.item["image"] is image
        assert [candidate.right for candidate in answer.top].index(True) == answer.rank
    (probe,) = swap.examples
    assert isinstance(probe, Probe) and probe.negative["text"] == "a mat beside a cat"


def test_the_largest_errors_come_first(columns, tmp_path):
    def miss(text, margin):
        right = Candidate({"text": "right"}, 0.5, True)
        return Answer({"text": text}, [Candidate({"text": "wrong"}, 0.5 + margin, False), right], right, 1)

    shown = [Gallery("question", [], [miss("narrow", 0.1)]), Gallery("scene_t2i", [], [miss("wide", 0.3)])]
    results = {"CLIP": columns["CLIP"][0]}
    text = write_report(results, shown, {}, tmp_path / "report.html", highlight="CLIP", credits="").read_text()
    assert text.index(">wide<") < text.index(">narrow<")


def column_of(share):
    return {
        "benchmark": "openmoji",
        "tasks": {"name_t2i": {"meta_task": "retrieval", "metric": "hit@1", "hit@1": share}},
        "meta_tasks": {"retrieval": share},
        "distributions": {},
        "overall": share,
        "mean_of_meta_tasks": share,
        "compositional": {"swap_obj": 1.0},
        "compositional_groups": {"swap": 1.0},
    }


def test_the_table_is_aligned_markdown_in_percent():
    assert table({"Before": column_of(0.0125), "CLIP": column_of(0.5)}).splitlines() == [
        "| hit@1, %                | Before |  CLIP |",
        "| ----------------------- | -----: | ----: |",
        "| **Retrieval**           |    1.2 |  50.0 |",
        "| name_t2i                |    1.2 |  50.0 |",
        "| **Mean of tasks**       |    1.2 |  50.0 |",
        "| **Compositional: swap** |  100.0 | 100.0 |",
        "| swap_obj                |  100.0 | 100.0 |",
    ]


def test_supplementary_tasks_have_a_table_of_their_own(tmp_path):
    tasks = [
        *RETRIEVAL,
        RetrievalTask(
            "plain_name_t2i", "plain", [{"text": "blue"}], [{"text": "a"}, {"text": "b"}], [[1]], baseline=0.5
        ),
        RetrievalTask("dark_name_t2i", "dark", [{"text": "green"}], [{"text": "a"}, {"text": "b"}], [[1]]),
    ]
    results, rankings = evaluate(encode(0), tasks, model="m", progress=False)
    columns = {"UniME": results}
    main, note, rest = table(columns).split("\n\n")
    assert main == table({"UniME": evaluate(encode(0), RETRIEVAL, model="m", progress=False)[0]})
    assert note.startswith("Not in the means")
    shares = {name: f"{100 * task['hit@1']:.1f}" for name, task in results["supplementary_tasks"].items()}
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in rest.splitlines()]
    assert cells[0] == ["hit@1, %", "UniME", "untrained", "chance"] and cells[3][0] == "plain_name_t2i"
    assert cells[3][1:] == [shares["plain_name_t2i"], "50.0", "50.0"]
    assert cells[5] == ["dark_name_t2i", shares["dark_name_t2i"], "", "50.0"]
    page = write_report(
        columns, build_galleries(rankings, tasks), {}, tmp_path / "x.html", highlight="UniME", credits=""
    ).read_text()
    section = page.split('<section id="supplementary">')[1].split("</section>")[0]
    assert "Without skin tones" in section and "On dark backgrounds" in section and "unseen" not in section
    assert page.count("<article>") == len(tasks)  # their examples are shown as well
    earlier = {key: value for key, value in results.items() if not key.startswith("supplementary")}
    assert table({"Earlier": earlier, "UniME": results}).split("\n\n")[2] == rest  # a column without such tasks
    write_report({"Earlier": earlier, **columns}, [], {}, tmp_path / "y.html", highlight="UniME", credits="")
    fewer = {**results, "supplementary_tasks": {"dark_name_t2i": results["supplementary_tasks"]["dark_name_t2i"]}}
    with pytest.raises(ValueError, match="'Before' and 'UniME' do not share plain_name_t2i"):
        table({"Before": fewer, "UniME": results})


def test_a_table_of_mmeb_has_each_of_its_means():
    column = column_of(0.25) | {"distributions": {"IND": 0.25, "OOD": 0.5}, "mean_of_meta_tasks": 0.125}
    lines = [line.strip("| ").split(" | ") for line in table({"UniME": column}).splitlines()]
    assert [[cell.strip() for cell in line] for line in lines[4:8]] == [
        ["**Mean of tasks**", "25.0"],
        ["Mean of IND", "25.0"],
        ["Mean of OOD", "50.0"],
        ["Mean of meta-tasks", "12.5"],
    ]


def test_columns_on_different_tasks_are_refused():
    other = {**column_of(0.5), "tasks": {"scene_t2i": {"meta_task": "retrieval", "metric": "hit@1", "hit@1": 0.5}}}
    with pytest.raises(ValueError, match="'Before' and 'CLIP' do not share name_t2i, scene_t2i"):
        table({"Before": column_of(0.5), "CLIP": other})


def test_a_highlight_that_is_not_a_column_is_refused(tmp_path):
    with pytest.raises(ValueError, match="highlight 'Stage 3' is not a column; choose from Before"):
        write_report({"Before": column_of(0.5)}, [], {}, tmp_path / "x.html", highlight="Stage 3", credits="")


def task_with_pools(name, meta_task, distribution):
    candidates = [{"text": "a"}, {"text": "b"}]
    return RetrievalTask(name, meta_task, [{"image": IMAGES[0]}], candidates, [[0]], [[0, 1]], distribution)


def measured(benchmark, titles=("CLIP ViT-L", "Stage <2>")):
    """Return results of random embeddings on tasks with the names of a benchmark; the first title is published too.

    Its few rows count as the published number of rows.
    """
    texts, images = [{"text": "red"}, {"text": "green"}], [{"image": image} for image in IMAGES[:2]]
    tasks = {
        "urban1k": [
            RetrievalTask("urban1k_t2i", "long", texts, images, [[0], [1]]),
            RetrievalTask("urban1k_i2t", "long", images, texts, [[0], [1]]),
        ],
        "mmeb": [task_with_pools(name, meta, "IND" if ind else "OOD") for name, (meta, ind, *_) in SETS.items()],
        "sugarcrepe": [],
    }[benchmark]
    compositional = [CompositionalTask(kind, images, texts, texts[::-1]) for kind in KINDS]
    results = {
        title: evaluate(
            encode(seed), tasks, [] if tasks else compositional, model=title, benchmark=benchmark, progress=False
        )[0]
        for seed, title in enumerate(titles)
    }
    for column in results.values():
        for name, size in PUBLISHED[benchmark].sizes.items():
            if name in column["tasks"]:
                column["tasks"][name] |= dict(zip(("queries", "candidates"), size, strict=False))
            else:
                column["compositional_rows"][name] = size[0]
    return results


def written(results, folder):
    path = write_report(results, [], {}, folder / "report.html", highlight="Stage <2>", credits="")
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("benchmark", "table_of", "rows"), [("mmeb", 1, 13 + 7), ("urban1k", 2, 12 + 7), ("sugarcrepe", 2, 12 + 7)]
)
def test_the_page_marks_every_published_row(benchmark, table_of, rows, tmp_path):
    text = written(measured(benchmark), tmp_path)
    tags = Tags(text)
    assert tags.open == [] and "script" not in tags.seen and "http" not in text and "Stage <2>" not in text
    assert f"Published, arXiv 2504.17432, table {table_of}" in text and "Published, arXiv 2510.13515" in text
    body = text.split("Comparison with published scores")[1]
    (ours, *published) = body.split("<tbody")[1:]
    assert ours.count("<tr class=") == 1 + 2 and "published" not in ours
    marked = [line for part in published for line in part.splitlines() if line.strip().startswith("<tr><th")]
    assert len(marked) == rows and all("<small>published</small>" in row for row in marked)


def test_the_page_shows_texts_and_images_in_their_order(tmp_path):
    red, green, _ = IMAGES
    query = ["The <cat>", red, "sits on", green]
    task = RetrievalTask("scene_t2i", "retrieval", [query], [{"text": "a"}, {"text": "b"}], [[0]])
    results, rankings = evaluate(encode(0), [task], model="CLIP", progress=False)
    galleries = build_galleries(rankings, [task])
    path = write_report({"CLIP": results}, galleries, {}, tmp_path / "report.html", highlight="CLIP", credits="")
    shown = path.read_text().split('<div class="card query">')[1].split("</div>")[0]
    urls = [uri.split('"')[0] for uri in shown.split('src="')[1:]]
    assert len(set(urls)) == 2
    positions = [shown.index(part) for part in ("The &lt;cat&gt;", urls[0], "sits on", urls[1])]
    assert positions == sorted(positions)


@pytest.mark.parametrize(("benchmark", "axes"), [("mmeb", 4), ("urban1k", 2), ("sugarcrepe", 3)])
def test_every_published_axis_has_bars_with_the_score_of_random_guesses(benchmark, axes, tmp_path):
    text = written(measured(benchmark), tmp_path)
    bars = text.split('<div class="bar named ')[1:]
    assert len(bars) == axes * (2 + 3)
    assert all(("<small>published</small>" in bar) == bar.startswith("published") for bar in bars)
    assert all(bar.count('<span class="chance" style="left: 50.0%">') == 1 for bar in bars)  # of two, in each


def test_a_column_with_the_title_of_a_published_row_keeps_its_own_scores(tmp_path):
    results = measured("mmeb")
    text = written(results, tmp_path).split("Comparison with published scores")[1].replace(' class="best"', "")
    rows = [line for line in text.splitlines() if ">CLIP ViT-L" in line and "<td>" in line]
    ours = [f"<td>{100 * score:.1f}</td>" for score in results["CLIP ViT-L"]["meta_tasks"].values()]
    assert len(rows) == 3  # the third is "CLIP ViT-L, fine-tuned"
    assert "".join(ours) in rows[0] and "published" not in rows[0]
    assert "<td>42.8</td><td>9.1</td><td>53.0</td><td>51.8</td>" in rows[1]


def chances(text):
    return [part.split("%")[0] for part in text.split('class="chance" style="left: ')[1:]]


def test_bars_show_the_score_of_random_guesses(page):
    head, meta_tasks, tasks, compositional = page.split("</header>")[0], *page.split("<section")[1:4]
    mean = f"{100 * (1 / 3 + 1 / 2) / 2:.1f}"  # one positive of three candidates, and one of two
    assert chances(head) == [mean] * 3 and f"random guesses, {mean}%." in head
    assert chances(meta_tasks) == ["50.0"] * 3 + ["33.3"] * 3  # question and scene
    assert chances(tasks) == ["50.0"] * 3 + ["33.3"] * 3
    assert chances(compositional) == ["50.0"] * 3


def test_tasks_without_a_score_of_random_guesses_have_no_mark(tmp_path):
    first, second = [{"text": "a"}, {"text": "b"}], [{"text": "c"}, {"text": "d"}]
    task = SimilarityTask("sts", first, second, [0.1, 0.9])
    results = {"Stage <2>": evaluate(encode(0), [task], model="m", benchmark="sts", progress=False)[0]}
    assert "chance" not in written(results, tmp_path).split("<body>")[1].replace("of-chance", "")
    ranked = RetrievalTask("pages", "documents", first, second, [[0], [1]], relevance=[[2.0], [1.0]])
    results = {"Stage <2>": evaluate(encode(0), [ranked], model="m", progress=False)[0]}
    assert set(chances(written(results, tmp_path))) == {"81.5"}  # of two pages: (1 + 1 / log2(3)) / 2


def test_the_best_score_of_each_row_is_bold_whichever_column_has_it(tmp_path):
    def column(*shares):
        tasks = {
            f"task_{index}": {"meta_task": "vqa", "metric": "hit@1", "queries": 9, "candidates": 9, "chance": 0.1}
            | dict.fromkeys(("hit@1", "R@1", "R@5", "R@10"), share)
            for index, share in enumerate(shares)
        }
        mean = sum(shares) / len(shares)
        return column_of(mean) | {"model": "m", "tasks": tasks, "meta_tasks": {"vqa": mean}, "seconds": 1.0}

    results = {"Before": column(0.9, 0.2), "Stage <2>": column(0.3, 0.6)}
    _, meta_tasks, tasks = written(results, tmp_path).split("<section")[:3]
    assert re.findall(r'class="value best">([\d.]+)<', meta_tasks) == ["55.0"]  # against 45.0
    assert re.findall(r'<span class="best">([\d.]+)<', tasks) == ["90.0", "60.0", *["90.0"] * 3, *["60.0"] * 3]
    alone = written({"Stage <2>": column(0.9, 0.2)}, tmp_path)
    assert 'class="best"' not in alone and "value best" not in alone


def test_the_contents_bar_links_to_every_section(page):
    bar = page.split('<nav aria-label="Contents">')[1].split("</nav>")[0]
    assert re.findall('href="#([^"]+)"', bar) == re.findall('<section id="([^"]+)"', page)
    assert len(re.findall("<section", page)) == bar.count("<a ") == 6


def test_examples_are_folded_after_two_rows(page):
    scene, question = page.split("<article>")[1:]
    shown, folded = scene.split('<details class="more"><summary>1 more query</summary>')
    assert (shown.count('class="answer"'), folded.split("</details>")[0].count('class="answer"')) == (2, 1)
    assert question.count('class="answer"') == 1 and "<details" not in question.split("</article>")[0]


def test_published_tables_follow_the_table_with_their_source():
    ours, title, first, other, second, protocols, note = table(measured("urban1k")).split("\n\n")
    assert "CLIP ViT-L" in ours and "published" not in ours.lower()
    assert title == "Published scores (arXiv 2504.17432, table 2), not measured by us:"
    head, _, clip, *_, unime = [[cell.strip() for cell in line.split("|")[1:-1]] for line in first.splitlines()]
    assert head == ["published, %", "Text → image, R@1", "Image → text, R@1", "image size", "prompts"]
    assert clip == ["CLIP ViT-L", "47.0", "47.0", "own", "own"]
    assert unime == ["UniME (LLaVA-OneVision) †", "94.3", "95.5", "336 px", "unime"]
    assert protocols.startswith(
        "†: measured under another protocol than ours (CLIP ViT-L: image size own, prompts own;"
    )
    assert other == "Published scores (arXiv 2510.13515), not measured by us:" and "UniME-V2 (Qwen2-VL-7B)" in second
    assert "under each other's name" in note


def test_part_of_a_benchmark_is_not_compared_with_published_scores(columns, tmp_path):
    results = {"Stage <2>": columns["Stage <2>"][0] | {"benchmark": "mmeb", "compositional": {}}}
    sentence = "Published scores are not shown: they cover all 36 tasks of mmeb, and only 0 of them were evaluated."
    assert table(results).split("\n\n")[1:] == [sentence]
    text = written(results, tmp_path)
    assert sentence in text and "2504.17432" not in text


def captions_of(number):
    """Return results on as many captions and images as a folder in the layout of Urban1K holds."""
    texts, images = [{"text": f"number {index}"} for index in range(number)], [f"image {i}" for i in range(number)]
    tasks = [
        RetrievalTask("urban1k_t2i", "long", texts, images, [[index] for index in range(number)]),
        RetrievalTask("urban1k_i2t", "long", images, texts, [[index] for index in range(number)]),
    ]
    return evaluate(encode(0), tasks, model="Stage <2>", benchmark="urban1k", progress=False)[0]


def test_only_sets_of_the_published_size_are_compared_with_published_scores(tmp_path):
    sentence = (
        "Published scores are not shown: they are of 1,000 queries and 1,000 candidates in urban1k_t2i, and "
        "17 queries and 17 candidates were evaluated."
    )
    results = {"Stage <2>": captions_of(17)}
    assert table(results).split("\n\n")[1:] == [sentence]
    text = written(results, tmp_path)
    assert sentence in text and "2504.17432" not in text and "UniME-V2" not in text
    assert "2504.17432" in table({"Stage <2>": captions_of(1000)})


def test_compositional_rows_and_queries_of_mmeb_are_counted():
    sugarcrepe, mmeb = measured("sugarcrepe")["Stage <2>"], measured("mmeb")["Stage <2>"]
    assert PUBLISHED["sugarcrepe"].partial(sugarcrepe) == PUBLISHED["mmeb"].partial(mmeb) == ""
    sugarcrepe["compositional_rows"]["add_att"] = 3
    assert "692 rows in add_att, and 3 rows were evaluated" in PUBLISHED["sugarcrepe"].partial(sugarcrepe)
    mmeb["tasks"]["CIRR"]["queries"] = 20
    assert "1,000 queries in CIRR, and 20 queries were evaluated" in PUBLISHED["mmeb"].partial(mmeb)
    assert len(PUBLISHED["mmeb"].evaluated(mmeb)) == 35
    del sugarcrepe["compositional_rows"]  # as in the results of earlier versions
    assert PUBLISHED["sugarcrepe"].evaluated(sugarcrepe) == []
