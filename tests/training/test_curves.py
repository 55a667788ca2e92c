"""The page with a run's curves."""

from __future__ import annotations

import json
import re

from support.small import feature_file, run

from clipcap.training.curves import write_curves
from clipcap.training.run_folder import LOG


def test_losses_share_a_chart_and_any_other_number_has_its_own(tmp_path):
    lines = [
        {"epoch": i, "step": i, "train_loss": 3 - i, "val_loss": 4 - i, "t2i_r10": i / 4, "t2i_median": 9 - i}
        for i in range(3)
    ]
    (tmp_path / LOG).write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = write_curves(tmp_path, {"t2i_r10": 0.1}).read_text(encoding="utf-8")
    charts = re.findall(r'<svg[^>]*aria-label="([^"]+)"', page)
    assert [chart.partition(" by epoch")[0] for chart in charts] == ["Loss", "T2i r10", "T2i median"]
    assert "t2i_r10 by chance" in page and "0.1" in page
    assert 'href="#training"' in page and "#pictures" not in page


def test_a_training_without_an_epoch_has_a_page(tmp_path):
    (tmp_path / LOG).write_text("")
    assert "No epoch is finished." in write_curves(tmp_path).read_text(encoding="utf-8")


def test_every_run_writes_one(tmp_path, lm_folder):
    out = run(feature_file(tmp_path / "f.pkl"), lm_folder, tmp_path / "out", val="0.25")
    page = (out / "curves.html").read_text(encoding="utf-8")
    assert "validation" in page and "<svg" in page
