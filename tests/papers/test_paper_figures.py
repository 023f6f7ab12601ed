"""The papers' figures and tables as pictures: which points, from where, and labels that can be read."""

import json
import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from attneck import cli
from attneck.commands import bench_table, paper_figures
from attneck.commands.measured import Results
from attneck.commands.papers import choose, compare_all
from attneck.errors import UserError
from attneck.explain import bars, pareto, table_picture
from attneck.papers.figures import points
from attneck.papers.step_times import StepTimes, key, read_step_times
from attneck.papers.tables import load_paper

MADDS = 10**9
ROWS = {
    row.label: row
    for number in ("14", "fig. 9")
    for row in load_paper("botnet").table(number).rows
    if not row.alternative
}


def names(figure: str) -> list[str]:
    return [point.name for point in points(figure, lambda network: MADDS)]


def test_each_figure_has_its_points():
    everything = names("9")
    assert len(everything) == len(set(everything)) == len(ROWS) == 29
    assert {"R50", "R50-256", "SE50", "R152", "B7-RA", "T7-320", "ViT-384", "DeiT-224"} <= {*everything}
    assert set(everything) - set(names("7")) == {"B6", "B7", "B7-RA", "S5", "T6", "T7", "T7-320"}
    # The names that stand in Figure 8's picture, as the paper's text has them.
    printed = "T4 T5 T6 T7 B3 B4 B5 B6 B7 B7-RA S3 S1 S2 DeiT-384 DeiT-224 T7-320 S4 S5"
    assert set(names("8")) == set(printed.split())


def test_a_number_is_the_printed_one_and_none_is_made_up():
    found = {point.name: point for point in points("9", lambda network: MADDS)}
    assert (found["T7"].top1, found["T7"].step_ms, found["T7"].source) == (84.7, 804.5, "Table 14")
    assert found["S5"].copied
    assert [name for name, point in found.items() if point.copied] == ["S5"]
    without = {name for name, point in found.items() if point.step_ms is None}
    assert without == {"ViT-384", "DeiT-224", "DeiT-384"}
    assert all("arXiv" in found[name].source for name in without)
    assert all(point.measured_ms == () for point in found.values())


def test_what_the_text_says_of_transformers_holds():
    """§4.8.6: ViT-384 is worse than a ResNet-50, DeiT-384 no better than S3, DeiT-224 worse than S2."""
    top1 = {point.name: point.top1 for point in points("9", lambda network: MADDS)}
    assert top1["ViT-384"] < top1["R50"]
    assert top1["DeiT-384"] <= top1["S3"]
    assert top1["DeiT-224"] < top1["S2"]


def drawn(monkeypatch, module, draw) -> Figure:
    made = []
    monkeypatch.setattr(module, "Figure", lambda **options: made.append(Figure(**options)) or made[0])
    draw()
    return made[0]


@pytest.fixture(scope="module")
def measured():
    """Step times of all networks but one."""
    rows = [row for row in ROWS.values() if row.label != "T7 BoTNet-S1-128"]
    return StepTimes(
        "x/times.json",
        "a device",
        "float32",
        {key(row.model, row.options, row.image_size): 100.0 + 7 * n for n, row in enumerate(rows)},
        3,
    )


@pytest.mark.parametrize("figure", ["8", "9"])  # 7 is a part of 9, in more room
def test_no_label_covers_another_or_a_point_or_the_edge(figure, tmp_path, monkeypatch, measured):
    from attneck.commands.papers import cost

    path = tmp_path / "figure.png"
    picture = drawn(
        monkeypatch,
        pareto,
        lambda: paper_figures.draw_pareto(figure, lambda network: cost(network).madds, [measured], path),
    )
    assert path.read_bytes().startswith(b"\x89PNG")
    picture.draw_without_rendering()  # as it was laid out: the file has other pixels
    panels = picture.axes
    assert len(panels) == 3
    counts = []
    for axes in panels:
        # Without the line to its point.
        boxes = {text.get_text(): Text.get_window_extent(text) for text in axes.texts}
        counts.append(len(boxes))
        inside = axes.get_window_extent()
        dots = [
            axes.transData.transform((line.get_xdata()[0], line.get_ydata()[0]))
            for line in axes.get_lines()
            if len(line.get_xdata()) == 1
        ]
        assert len(dots) == len(boxes)
        for name, box in boxes.items():
            assert inside.x0 <= box.x0
            assert box.x1 <= inside.x1
            assert not [other for other, its in boxes.items() if other != name and box.overlaps(its)], name
            assert not [dot for dot in dots if box.contains(*dot)], name
    everything = len(names(figure))
    transformers = sum("T-" in name for name in names(figure) if name[0] in "VD")
    assert counts == [everything - transformers, everything, everything - ("T7" in names(figure))]
    # In grey, too: each family has a mark and a line of its own.
    handles = picture.legends[0].legend_handles
    styles = [(handle.get_marker(), handle.get_linestyle()) for handle in handles]
    assert len({mark for mark, _ in styles}) == len({line for _, line in styles}) == len(styles)


def test_a_label_without_room_is_refused():
    from attneck.explain.labels import label_points

    axes = Figure(figsize=(0.5, 0.5)).subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    with pytest.raises(ValueError, match="make the picture larger"):
        label_points(axes, [(0.5, 0.5)], ["a name that is longer than the picture"], ["black"])


def test_the_frontier_leaves_out_what_is_beaten():
    dots = [
        pareto.Dot("a", "x", cost, score) for cost, score in [(3, 80), (1, 70), (2, 69), (3, 75), (4, 81)]
    ]
    dots.append(pareto.Dot("of a misprinted cost", "x", 3, 83, hollow=True))
    assert pareto.frontier(dots) == [(1, 70), (3, 80), (4, 81)]


def test_the_command_draws_and_prints_the_points_with_their_sources(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["papers", "--figure", "8", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["picture"] == "botnet-figure-8.svg"
    first = (tmp_path / "botnet-figure-8.svg").read_bytes()
    assert first.startswith(b"<?xml")
    by_name = {point["name"]: point for point in document["points"]}
    assert by_name["B7"]["step_ms"] == {"value": 1478.4, "source": "Table 14", "copied": False}
    assert by_name["DeiT-384"]["step_ms"] is None
    assert by_name["DeiT-384"]["top1"] == {"value": 83.1, "source": "DeiT (arXiv 2012.12877)"}
    assert cli.main(["papers", "botnet", "--figure", "8", "--save", "other.svg"]) == 0
    assert re.search(r"S5 +83.8 +Table 14 +397.9 +Table 14, a copy +76.198", capsys.readouterr().out)
    assert (tmp_path / "other.svg").read_bytes() == first  # the same bytes each time


@pytest.fixture(scope="module")
def ablation():
    return [
        part for number in paper_figures.ABLATION for part in compare_all(choose("bam", number), Results([]))
    ]


def test_bars_are_what_each_variant_takes_off_its_base(ablation, tmp_path, monkeypatch):
    picture = drawn(monkeypatch, bars, lambda: paper_figures.draw_ablation(ablation, tmp_path / "bars.pdf"))
    assert (tmp_path / "bars.pdf").read_bytes().startswith(b"%PDF")
    titles = [axes.get_title(loc="left") for axes in picture.axes]
    assert titles[:3] == [
        "Table 1a, Dilation value (d); base 21.49 %",
        "Table 1a, Reduction ratio (r); base 21.49 %",
        "Table 1b, branches and how they are combined; base 21.49 %",
    ]
    assert [title.partition("; ")[2] for title in titles[3:]] == [
        "base 21.49 %",
        "base 20.4 %",
        "base 18.18 %",
    ]
    said = [text.get_text() for text in picture.axes[2].texts]
    assert said == ["21.29 %", "21.24 %", "20.28 %", "20.21 %", "20 %"]
    widths = [bar.get_width() for bar in picture.axes[5].patches]
    assert widths == pytest.approx([18.18 - 17.69, 18.18 - 16.71])


def test_a_measured_bar_stands_beside_the_printed_one(tmp_path, monkeypatch):
    group = bars.Group("g", [bars.Bar("BAM", 1.5, "20 % printed", (-0.2, "21.7 % measured"))])
    picture = drawn(monkeypatch, bars, lambda: bars.draw("t", "u", [group], [], tmp_path / "bars.png"))
    (axes,) = picture.axes
    printed, mine = axes.patches
    assert mine.get_hatch()
    assert not printed.get_hatch()
    assert axes.get_xlim()[0] < -0.2


@pytest.mark.parametrize(("paper", "table"), [("botnet", "14"), ("bam", "1b")])
def test_a_table_s_cells_do_not_cover_each_other(paper, table, tmp_path, monkeypatch, capsys):
    path = tmp_path / "table.svg"
    monkeypatch.chdir(tmp_path)
    picture = drawn(
        monkeypatch,
        table_picture,
        lambda: cli.main(["papers", paper, "--table", table, "--save", str(path)]),
    )
    assert capsys.readouterr().out == f"wrote {path}\n"
    (axes,) = picture.axes
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
    assert len(boxes) > 20
    width = axes.get_window_extent().x1
    for i, box in enumerate(boxes):
        assert box.x1 <= width + 1
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["bam", "--figure", "9"], "is the botnet paper's"),
        (["--figure", "9", "--table", "14"], "leave --table out"),
        (["--figure", "9", "--markdown"], "leave --markdown out"),
        (["--markdown", "--json"], "--markdown and --json are given: leave one out"),
        (["--figure", "10"], "perhaps|choice"),
        (["--figure", "9", "--save", "x.doc"], "wanted a file that ends in .png, .svg or .pdf"),
        (["--figure", "9", "--save", "no/where.svg"], "make it first"),
        (["--save", "x.svg"], "for one table or figure"),
        (["--table", "2", "--save", "x.svg"], "for one table or figure"),
        (["botnet", "--table", "2", "--save", "x.svg", "--json"], "without --markdown and --json"),
        (["botnet", "--table", "2", "--save", "x.gif"], "wanted a file"),
    ],
)
def test_mistakes_are_answered_in_one_line(words, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["papers", *words]) == 2
    said = capsys.readouterr().err
    assert re.search(says, said)
    assert said.count("\n") == 1
    assert not [*tmp_path.iterdir()]


# Step times


@pytest.fixture
def few(monkeypatch):
    """Two tiny networks in place of the table's."""
    rows = [row for row in bench_table.rows() if row.label in ("S0 SENet-50", "ViT-384")]
    calls: list[str] = []

    def sample(row, dtype, device, seconds):
        calls.append(row["name"])
        if row["batch"] > 2:
            raise MemoryError
        return 0.01 * len(calls)

    monkeypatch.setattr(bench_table, "rows", lambda: rows)
    monkeypatch.setattr(bench_table, "sample", sample)
    return calls


WORDS = ["bench", "step", "--table", "14", "--threads", "1"]


def test_networks_take_turns_and_the_paper_s_times_stand_beside(few, tmp_path, capsys):
    out = tmp_path / "times.json"
    assert cli.main([*WORDS, "--out", str(out)]) == 0
    assert few == ["S0", "ViT-384"] * bench_table.ROUNDS
    said = capsys.readouterr().out
    assert re.search(r"S0 +160 +1 +30.0 +30.0 +32.3", said)
    (times,) = read_step_times([tmp_path])
    assert times.of(ROWS["S0 SENet-50"]) == pytest.approx(30.0)
    assert times.of(ROWS["T7 BoTNet-S1-128"]) is None
    assert times.dtype == "float32"


def test_it_goes_on_where_it_was_stopped(few, tmp_path, monkeypatch):
    out = tmp_path / "times.json"
    whole = bench_table.sample

    def stopped(*arguments):
        if len(few) == 3:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(bench_table, "sample", stopped)
    assert cli.main([*WORDS, "--out", str(out)]) > 2
    assert [len(row["samples_ms"]) for row in json.loads(out.read_text())["rows"]] == [2, 1]
    monkeypatch.setattr(bench_table, "sample", whole)
    assert cli.main([*WORDS, "--out", str(out)]) == 0
    assert few == ["S0", "ViT-384"] * bench_table.ROUNDS  # none of them twice
    assert cli.main([*WORDS, "--out", str(out)]) == 0
    assert len(few) == 2 * bench_table.ROUNDS


def test_networks_of_table_5_over_its_r50(few, tmp_path, capsys):
    out = tmp_path / "ratios.json"
    words = ["bench", "step", "--table", "5", "--threads", "1", "--out", str(out)]
    assert cli.main(words) == 0
    document = json.loads(out.read_text())
    assert [(row["model"], row["image_size"]) for row in document["rows"]] == [
        *((f"{name}", 1024) for name in ("resnet50", "botnet50_001", "botnet50_011", "botnet50_100")),
        *(("botnet50", 1024), ("resnet101", 1024), ("botnet101", 1024)),
        *((model, side) for model in ("resnet50", "botnet50") for side in (224, 1280)),
    ]
    said = capsys.readouterr().out
    # The second of two samples, of three rounds: hundredths, one more for each network.
    assert re.search(r"\nR50 +1024 +120.0 +1.00 +786.5 +1.00\n", said)
    assert re.search(r"\nBoT 50 \[1,1,1\] +1024 +160.0 +1.33 +1032.7 +1.31\n", said)
    assert re.search(r"\nR101 +1024 +170.0 +1.42 +928.7 +1.18\n", said)
    assert re.search(r"\nBoT 50 \[1,1,1\] +1280 +220.0 +1.10\n", said + "\n")
    assert read_step_times([tmp_path]) == []  # its rows are not those of Table 14's networks
    assert cli.main(words) == 0
    assert len(few) == 11 * bench_table.ROUNDS
    assert cli.main([*WORDS, "--out", str(out)]) == 2


def test_a_batch_that_does_not_fit_is_halved_and_said(few, tmp_path, capsys):
    out = tmp_path / "times.json"
    assert cli.main([*WORDS, "--batch", "8", "--out", str(out)]) == 0
    assert "S0 does not fit: batch 4" in capsys.readouterr().err
    rows = json.loads(out.read_text())["rows"]
    assert [(row["batch"], len(row["samples_ms"])) for row in rows] == [(2, bench_table.ROUNDS)] * 2


def test_other_times_are_not_mixed_in(few, tmp_path, capsys):
    out = tmp_path / "times.json"
    assert cli.main([*WORDS, "--out", str(out)]) == 0
    capsys.readouterr()
    assert cli.main([*WORDS, "--dtype", "bfloat16", "--out", str(out)]) == 2
    assert "dtype float32 → bfloat16" in capsys.readouterr().err
    out.write_text("{}")
    assert cli.main([*WORDS, "--out", str(out)]) == 2
    assert "holds something else" in capsys.readouterr().err
    assert cli.main([*WORDS, "--size", "224"]) == 2
    assert "bench step --table takes no --size" in capsys.readouterr().err


def test_a_damaged_document_is_named(tmp_path):
    (tmp_path / "x.json").write_text('{"what": "step times", "rows": 3}')
    with pytest.raises(UserError, match=r"x\.json is no document of attneck bench step --table"):
        read_step_times([tmp_path])


def test_a_step_is_forward_and_backward_and_leaves_no_gradient():
    from attneck.measure import steps

    call = steps.forward_backward("botnet_s1_59", {"depths": [1, 1, 1, 1]}, 32, 1, "float32")
    assert call() is None
    network = next(
        cell.cell_contents for cell in call.__closure__ if hasattr(cell.cell_contents, "parameters")
    )
    assert network.training
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_committed_times_are_read():
    root = Path(__file__).parents[2] / "results"
    found = read_step_times([root])
    assert found
    for times in found:
        assert all(value > 0 for value in times.ms_an_image.values())
