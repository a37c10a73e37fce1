"""The example that compares the rungs, on a few of its cells."""

import json

import numpy as np
import pytest
import three_rungs
from three_rungs import CONSTANTS, Cell


@pytest.mark.slow
def test_a_short_run_leaves_everything_it_should(tmp_path, capsys):
    assert three_rungs.main(["--cells", "2", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "summary.json").read_text())["three_rungs"]
    assert record["cells"] == 2 and len(record["every cell"]) == 2
    for cell in record["every cell"]:
        predicted = cell["predicted"]
        # One mode alone sees no noise, another some of it, and its gap too much.
        assert predicted["relevant mode"] > predicted["structural"]
        assert predicted["single gap"] > 1e12 * cell["exact"]
        assert predicted["relevant gap"] < predicted["structural"] < predicted["sokal"]
        assert cell["interval"][0] < cell["sampled"] < cell["interval"][1]
        np.testing.assert_allclose(cell["sampled"], cell["exact"], rtol=0.5)
    assert {p.name for p in tmp_path.iterdir()} == {
        "summary.json",
        "ratios.svg",
        "conventions.svg",
    }
    assert "of 2 cells, tracked within a factor of" in capsys.readouterr().out


def test_there_are_48_cells_of_three_kinds():
    cells = [(kind, beta, k) for kind, beta, *_, k in three_rungs.systems(48)]
    assert len(set(cells)) == 48
    assert {kind for kind, _, _ in cells} == set(three_rungs.KINDS)


@pytest.mark.parametrize("ratio, tracks", [(2.99, True), (0.34, True), (3.01, False)])
def test_tracking_is_within_a_factor_either_way(ratio, tracks):
    cell = Cell("planted", 1.0, 3, 1.0, {"structural": ratio}, 1.0, 1.0, (0.9, 1.1))
    assert cell.tracks("structural", CONSTANTS.factor) == tracks


def test_mistakes_on_the_command_line(tmp_path):
    with pytest.raises(SystemExit):
        three_rungs.main(["--cells", "49", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"run examples/exp9.py first"):
        three_rungs.main(["--cells", "1", "--exp9", str(tmp_path)])
