"""`softvq report`: what it tells of the report that it writes; what stands in it is in
tests/evaluation/test_report.py."""

from pathlib import Path

from tests.cli.running import refusal, result, softvq
from tests.evaluation.test_report import changed, probe, reconstruction, without


def test_what_is_written_is_told(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reconstruction(Path("evaluations"), "runs/one")
    assert softvq("report") == (0, "1 result in evaluations/report.md\n", "")
    reconstruction(Path("evaluations"), "runs/two")
    assert softvq("report", "evaluations") == (0, "2 results in evaluations/report.md\n", "")
    before = Path("evaluations/report.md").read_text()
    told = {"report": "elsewhere/r.md", "results": 2, "figures": [], "left_out": []}
    assert result("report", "evaluations", "--out", "elsewhere/r.md") == told
    assert Path("elsewhere/r.md").read_text() == before
    assert result("report", "--out", "r.md")["results"] == 2


def test_figures_are_told(tmp_path: Path):
    for number in (1, 2):
        probe(tmp_path, f"runs/{number}", 0.5)
    figures = result("report", tmp_path)["figures"]
    assert figures == [str(tmp_path / "report-probe.png")]
    assert all(Path(path).is_file() for path in figures)


def test_what_is_left_out_is_told(tmp_path: Path):
    path = reconstruction(tmp_path / "odd", "odd")
    changed(path, without("scores"))
    found = refusal(1, "report", tmp_path)  # when there is nothing else
    assert all(words in found for words in ("holds no results of evaluations", str(path), "without scores"))
    reconstruction(tmp_path, "runs/good")
    (one,) = result("report", tmp_path)["left_out"]
    assert all(words in one for words in (str(path), "without scores"))
    assert softvq("report", tmp_path)[1] == f"1 result in {tmp_path / 'report.md'}\nleft out: {one}\n"


def test_no_results_are_a_sentence(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for words, message in (
        (["empty"], "empty holds no results of evaluations."),
        (["missing"], "there is no folder missing."),
        ([], "there is no folder evaluations."),
    ):
        assert refusal(1, "report", *words) == message
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
