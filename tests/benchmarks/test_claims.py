"""The grid of the paper's claims: it continues, its lines survive kills, and the verdicts follow the lines."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import pytest

from benchmarks import json_lines
from benchmarks.claims import cell, grid, judged, lines, page, plan, plots, verdicts
from benchmarks.claims.verdicts import BETTER, FAILS, HOLDS, LIMITED, OPEN, WORSE, Absent
from benchmarks.cli import main
from deformreg.evaluation import suites
from train import options
from train.errors import ConfigError, NonFiniteLoss
from train.runs import Run
from train.task import prepare

ACCURACIES = {  # of each method's two strengths: clean, under flows, unseen
    "standard": [(0.99, 0.05, 0.2)],
    "input gradient": [(0.985, 0.2, 0.3), (0.9, 0.6, 0.3)],
    "flow gradient": [(0.99, 0.3, 0.5), (0.985, 0.5, 0.6)],
    "pixel adversarial": [(0.99, 0.3, 0.5), (0.985, 0.35, 0.6)],
    "deformation": [(0.985, 0.7, 0.4), (0.985, 0.6, 0.3)],
    "flow gradient + deformation": [(0.985, 0.85, 0.75)],
}


def line(method, strength, clean, robust, unseen, *, setting="digits", seed=0):
    bounds = {"radii": [0.1, 0.2, 0.3], "flow_is_tighter": [0.9] * 3, "median_factor": [2.0] * 3}
    bounds |= {"flow_holds": [0.5] * 3, "input_holds": [0.6] * 3, "flow": [1.0] * 3, "displacement": [1.25] * 3}
    bounds |= {"increase": [2.0] * 3, "second_order": [1.5] * 3}
    return {
        "name": f"{setting}/{method}-{strength:g}/seed{seed}",
        "setting": setting,
        "method": method,
        "strength": strength,
        "seed": seed,
        "config": {},
        "passes": 3.0,
        "held_out": {"examples": 200, "clean_accuracy": clean, "robust_accuracy": robust},
        "seen": {
            "examples": 200,
            "clean_accuracy": clean,
            "radii": [0.1, 0.2, 0.3],
            "accuracies": [min(1, robust + 0.1), robust, robust / 2],
            "flags": [],
        },
        "unseen": {
            "accuracies": {"stadv": unseen, "pixels": unseen / 2},  # no deformation
            "adef_broken": 1.0,
            "adef_displacement": 0.5,
        },
        "bounds": bounds,
        "stability": {"ratio": 0.8},
    }


def made(**options):
    return [
        line(method, float(number), *accuracies, **options)
        for method, strengths in ACCURACIES.items()
        for number, accuracies in enumerate(strengths)
    ]


def test_strengths_are_chosen_on_held_out_images_at_matched_clean_accuracy():
    found = verdicts.chosen(made(), "digits")
    assert {name: one.strength for name, one in found.items()} == {
        "standard": 0.0,
        "input gradient": 0.0,  # the other one gives up clean accuracy
        "flow gradient": 1.0,
        "pixel adversarial": 1.0,
        "deformation": 0.0,
        "flow gradient + deformation": 0.0,
    }
    assert all(one.matched for one in found.values())


def test_a_method_that_never_matches_is_not_compared():
    cells = [one for one in made() if one["method"] != "input gradient"]
    cells.append(line("input gradient", 5.0, 0.9, 0.6, 0.3))
    assert not verdicts.chosen(cells, "digits")["input gradient"].matched
    found = verdicts.judge(cells)["C1"]
    assert found.verdict == OPEN
    assert found.absent == (Absent("digits", verdicts.APART, ("input gradient",)),)
    without = [one for one in made() if one["method"] != "deformation"]
    assert verdicts.judge(without)["C3"].absent == (Absent("digits", verdicts.MISSING, ("deformation",)),)
    setting = "mnist5k/preact-resnet-18-gelu"
    elsewhere = [one | {"setting": setting} for one in made() if one["method"] != "pixel adversarial"]
    assert verdicts.judge(elsewhere)["C2"].absent == (Absent(setting, verdicts.UNTRIED, ("pixel adversarial",)),)
    assert f"Not compared: `{setting}`: not tried (pixel adversarial)." in judged.in_full(elsewhere)
    assert "input gradient (not matched)" in page.matched(cells)


def test_verdicts_follow_the_lines():
    found = verdicts.judge(made())
    assert {number: one.verdict for number, one in found.items()} == {
        "C1": HOLDS,
        "C2": HOLDS,
        "C3": HOLDS,
        "C4": HOLDS,
        "C5": HOLDS,
    }
    (first,) = found["C1"].evidence
    assert (first.ours.method, first.theirs.method, first.outcome) == ("flow gradient", "input gradient", BETTER)
    assert first.difference == pytest.approx(0.3)
    assert {one.kept for one in found["C5"].evidence} == {(0.5, 0.5, 0.5)}
    low, high = (f"{100 * end:+.1f}" for end in verdicts.difference_interval(0.5, 0.2, 200))
    row = f"| `digits` | under flows | input gradient | +30.0 | {low} to {high} | better |"
    assert row in judged.in_full(made())
    assert "| **holds** | better in 1, worse in 0, undecided in 0 |" in judged.summary(made()).splitlines()[2]
    assert verdicts.judge([])["C1"].verdict == OPEN


@pytest.mark.parametrize(
    ("number", "method", "entry", "value"),
    [
        ("C1", "flow gradient", "seen", 0.22),
        ("C2", "pixel adversarial", "seen", 0.6),
        ("C3", "deformation", "unseen", 0.6),
        ("C4", "flow gradient + deformation", "seen", 0.7),
        ("C5", "flow gradient", "bounds", 0.3),
    ],
)
def test_a_wrong_figure_changes_the_verdict(number, method, entry, value):
    cells = copy.deepcopy(made())
    for one in cells:
        if one["method"] == method:
            if entry == "seen":
                one["seen"]["accuracies"][1] = value
            elif entry == "unseen":
                one["unseen"]["accuracies"]["stadv"] = value
            else:
                one["bounds"]["flow_is_tighter"][1] = value
    before, after = verdicts.judge(made()), verdicts.judge(cells)
    assert before[number].verdict == HOLDS
    assert after[number].verdict in (LIMITED, FAILS)


def test_a_claim_that_holds_in_one_setting_only_is_limited():
    other = made(setting="mnist")
    for one in other:
        if one["method"] == "flow gradient":
            one["seen"]["accuracies"][1] = 0.1
    found = verdicts.judge(made() + other)["C1"]
    assert found.verdict == LIMITED
    assert [one.outcome for one in found.evidence] == [BETTER, WORSE]


def test_the_interval_of_a_difference_is_newcombes():
    # Newcombe 1998, table II, row (a), method 10: 56/70 against 48/80 is 0.2, from 0.0524 to 0.3339; the two groups
    # differ in size there, so only equal groups are compared here: 9/10 against 3/10 in row (d): 0.1705 to 0.8090.
    low, high = verdicts.difference_interval(0.9, 0.3, 10)
    assert (round(low, 4), round(high, 4)) == (0.1705, 0.8090)


def test_lines_survive_a_writer_that_was_killed(tmp_path):
    file = tmp_path / "cells.jsonl"
    first, second = made()[:2]
    json_lines.append(file, first)
    with file.open("ab") as opened:
        opened.write(b'{"name": "half')
    assert lines.read(file) == [first]
    json_lines.append(file, second)
    assert lines.read(file) == [first, second]
    json_lines.append(file, first | {"seed": 7})
    assert [one["seed"] for one in lines.read(file)] == [7, 0]
    file.write_text(file.read_text().rstrip("\n"))  # a last line that lacks only its end is a whole one
    assert [one["seed"] for one in lines.read(file)] == [7, 0]
    json_lines.append(file, second | {"name": "third"})
    assert [one["name"] for one in lines.read(file)] == [first["name"], second["name"], "third"]
    mistakes = {"[1]": "is no JSON object", "{": "is no JSON", '{"name": "x"}': "is not a finished cell"}
    for broken, words in mistakes.items():
        file.write_text(broken + "\n")
        with pytest.raises(ConfigError, match=f"line 1 {words}"):
            lines.read(file)


def test_an_interrupted_grid_continues(tmp_path, monkeypatch, capsys):
    file, computed = tmp_path / "cells.jsonl", []

    def compute(one, folder, *, measures, data_dir, known):
        if len(computed) == 2:
            raise KeyboardInterrupt
        computed.append(one.name)
        measured = line(one.method, one.strength, 0.9, 0.5, 0.4, setting=one.setting.name, seed=one.seed)
        return measured | {"name": one.name, "config": options.to_tree(one.config)}

    monkeypatch.setattr(cell, "compute", compute)
    arguments = ["claims", "--only", "digits/small-cnn-relu/standard", "--lines", str(file)]  # three seeds
    with pytest.raises(KeyboardInterrupt):
        main(arguments)
    assert len(lines.read(file)) == 2
    main([*arguments, "--names"])
    names = capsys.readouterr().out
    assert (names.count("done"), names.count("missing")) == (2, 1)
    first = computed.copy()
    computed.clear()
    assert main(arguments) == 0
    assert len(computed) == 1
    assert computed[0] not in first
    assert "3 cells are finished" in capsys.readouterr().out


def test_the_grid_goes_on_after_a_training_that_diverged(tmp_path, monkeypatch, capsys):
    def compute(one, folder, *, measures, data_dir, known):
        if one.seed == 1:
            raise NonFiniteLoss("step 3: loss nan")
        measured = line(one.method, one.strength, 0.9, 0.5, 0.4, setting=one.setting.name, seed=one.seed)
        return measured | {"name": one.name, "config": options.to_tree(one.config)}

    monkeypatch.setattr(cell, "compute", compute)
    file = tmp_path / "cells.jsonl"
    assert main(["claims", "--only", "digits/small-cnn-relu/standard", "--lines", str(file)]) == 0
    found = lines.current(lines.read(file), grid.cells())
    assert [one["seed"] for one in found] == [0, 1, 2]
    assert [one["held_out"]["clean_accuracy"] for one in found] == [0.9, 0.0, 0.9]
    out = capsys.readouterr().out
    assert "3 cells are finished" in out
    assert "digits/small-cnn-relu/standard-0/seed1: its training diverged" in out


def test_a_strength_that_diverged_is_not_chosen(tmp_path):
    setting = "mnist5k/small-cnn-relu"
    cells = [one for one in grid.cells() if one.setting.name == setting and one.seed == 0]
    flow = [one for one in cells if one.method == "flow gradient"]
    found = [line("standard", 0.0, 0.99, 0.1, 0.3, setting=setting) | {"name": cells[0].name}]
    found += [line(one.method, one.strength, 0.99, 0.3, 0.3, setting=setting) | {"name": one.name} for one in flow[:-1]]
    lost = cell.diverged(flow[-1], tmp_path)
    assert lines.of_cell([lost], flow[-1]) == lost
    assert verdicts.chosen([*found, lost], setting)["flow gradient"].strength == flow[0].strength
    assert plan.judgeable([*found, lost]) == [*found, lost]
    assert not next(one for one in plan.wanted([*found, lost]) if one.cell == flow[-1]).missing
    assert page.matched([*found, lost]) == page.matched(found)
    (axes,) = plots.curves([*found, lost]).axes
    assert [len(one.get_xdata()) for one in axes.lines] == [1, len(flow) - 1]


def test_methods_are_compared_on_the_seeds_that_they_share():
    cells = [one | {"seed": seed} for one in made() for seed in (0, 1)]
    better = [one | {"seen": one["seen"] | {"accuracies": [0.9, 0.9, 0.9]}} for one in cells]
    extra = [one | {"seed": 2} for one in better if one["method"] in ("standard", "flow gradient") and one["seed"] == 0]
    found = verdicts.compare(cells + extra, "flow gradient", ["input gradient"], ["under flows"])
    assert found[0].difference == verdicts.compare(cells, "flow gradient", ["input gradient"], ["under flows"])[0][4]


def test_measures_show_which_budgets_they_are_of():
    one = next(one for one in grid.cells() if one.name == "digits/small-cnn-relu/standard-0/seed0")
    measured = line("standard", 0.0, 0.9, 0.5, 0.4, setting=one.setting.name) | {
        "name": one.name,
        "config": options.to_tree(one.config),
    }
    assert lines.of_cell([measured], one) == measured
    assert lines.of_cell([measured | {"seen": measured["seen"] | {"radii": [1, 2, 3]}}], one) is None
    assert lines.of_cell([measured | {"held_out": measured["held_out"] | {"clean_examples": 7}}], one) is None
    assert lines.of_cell([measured | {"attacked": one.attacked | {"pixels": 0.5}}], one) is None


def test_further_seeds_are_wanted_of_the_chosen_strength_only():
    setting = next(one for one in grid.SETTINGS if one.name == "mnist5k/small-cnn-relu")

    def of(strength, clean, robust, seed=0, method="flow gradient"):
        found = line(method, strength, clean, robust, 0.3, setting=setting.name, seed=seed)
        return found | {"name": grid.Cell(setting, method, strength, seed).name}

    def repeated(found):
        cells = [one for one, *_ in plan.wanted(found) if one.setting.name == setting.name and one.seed > 0]
        return [(one.strength, one.seed) for one in cells if one.method == "flow gradient"]

    standard = [of(0.0, 0.99, 0.1, method="standard")]
    first = [of(4.0, 0.99, 0.2), of(12.0, 0.985, 0.3), of(36.0, 0.9, 0.8), of(100.0, 0.8, 0.8)]
    assert repeated([]) == repeated(first) == repeated(standard + first[:2]) == []
    unmeasured = {name: entry for name, entry in first[0].items() if name != "held_out"}
    assert repeated([*standard, unmeasured, *first[1:]]) == []
    assert repeated(standard + first) == [(12.0, 1), (12.0, 2)]
    assert plan.judgeable(standard + first[:3] + made()) == standard + made()  # a strength is missing
    assert plan.judgeable(standard + first + made()) == standard + first + made()
    kept = [of(12.0, 0.985, 0.3, seed) for seed in (1, 2)]
    assert repeated(standard + first + kept) == [(12.0, 1), (12.0, 2)]
    lost = [of(12.0, 0.95, 0.3, seed) for seed in (1, 2)]
    assert repeated(standard + first + lost) == [(4.0, 1), (12.0, 1), (4.0, 2), (12.0, 2)]
    far = [of(strength, clean, 0.3) for strength, clean in ((4.0, 0.9), (12.0, 0.95), (36.0, 0.8), (100.0, 0.7))]
    assert repeated(standard + far) == [(12.0, 1), (12.0, 2)]  # none matches: one stands for the method
    everything = plan.to_come([])
    assert plan.to_come(standard) == everything - 1
    assert plan.to_come(standard + first) == everything - 5
    assert plan.to_come(standard + first + kept) == everything - 7
    assert plan.to_come(standard + first + lost) == everything - 5  # two more for the next strength


def test_test_images_are_for_the_chosen_strength_where_no_curves_are_asked_for():
    setting = next(one for one in grid.SETTINGS if one.name == "mnist5k/small-cnn-silu")

    def of(method, strength, robust, clean=0.99, seed=0):
        found = line(method, strength, clean, robust, 0.3, setting=setting.name, seed=seed)
        kept = {name: entry for name, entry in found.items() if name not in ("seen", "unseen", "bounds", "stability")}
        return kept | {"name": grid.Cell(setting, method, strength, seed).name}

    def open_(found):
        wanted = [one for one in plan.wanted(found) if one.cell.setting.name == setting.name and one.missing]
        return [
            (one.cell.strength, one.cell.seed, len(one.measures)) for one in wanted if one.cell.method == "deformation"
        ]

    standard = [of("standard", 0.0, 0.1)]
    held_out = [of("deformation", strength, 0.1 + strength) for strength in (0.125, 0.25, 0.5)]
    everything = len(cell.MEASURES)
    assert open_(standard) == [(0.125, 0, 1), (0.25, 0, 1), (0.5, 0, 1)]
    assert open_(standard + held_out) == [(0.5, seed, everything) for seed in (0, 1, 2)]
    measured = line("deformation", 0.5, 0.99, 0.6, 0.3, setting=setting.name) | {"name": held_out[-1]["name"]}
    whole = line("standard", 0.0, 0.99, 0.1, 0.3, setting=setting.name)
    assert open_([*standard, *held_out[:-1], measured]) == [(0.5, seed, everything) for seed in (1, 2)]
    assert plan.judgeable([whole, *held_out]) == [whole]  # the chosen strength is not measured yet
    assert plan.judgeable([whole, *held_out[:-1], measured]) == [whole, *held_out[:-1], measured]
    table = page.every_cell([whole, *held_out])
    assert f"| `{held_out[0]['name']}` | 99.0 | 22.5 |  |  |  |  |" in table.splitlines()
    assert "22.5 % robust on held-out images" in lines.summary(held_out[0])
    assert not plots.curves([whole, *held_out]).axes


def test_activations_stand_side_by_side():
    both = made(setting="digits/net-relu") + made(setting="digits/net-gelu") + made(setting="digits/other-relu")
    for one in both:
        if one["setting"] == "digits/net-gelu" and one["method"] == "input gradient":
            one["held_out"]["clean_accuracy"] = 0.5
    table = page.activations(both)
    assert "| `digits/net` | flow gradient | relu | 1 | 1 | 98.5 | 50.0 | 60.0 |" in table
    assert "| `digits/net` | input gradient | gelu (not matched) | 0 | 1 | 98.5 | 20.0 | 30.0 |" in table
    assert "other" not in table
    table = page.strengths([one for one in both if (one["setting"], one["strength"]) != ("digits/net-gelu", 1)])
    assert "| network | method | strength | relu | gelu |" in table
    assert "| `digits/net` | input gradient | 0 | 98.5 / 20.0 | 50.0 / 20.0 |" in table
    assert "| `digits/net` | flow gradient | 1 | 98.5 / 50.0 |  |" in table
    assert "other" not in table


def test_cells_have_names_of_their_own_and_valid_configs():
    cells = grid.cells()
    assert len({one.name for one in cells}) == len(cells)
    for one in cells:
        assert options.check(one.config) == one.config
        assert one.config.method.make().passes > 0
    assert {one.method for one in cells} <= plots.COLORS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("setting", [one for one in grid.SETTINGS if one.seeds > 1], ids=lambda setting: setting.name)
def test_a_setting_knows_its_number_of_steps(setting):
    assert setting.config.epochs * prepare(setting.config).steps_per_epoch == setting.steps


def test_a_line_of_another_config_does_not_count():
    one = grid.cells()[0]
    ours = {"name": one.name, "config": options.to_tree(one.config)}
    assert lines.of_cell([ours], one) == ours
    changed = json.loads(json.dumps(ours))
    changed["config"]["epochs"] += 1
    assert lines.of_cell([changed], one) is None
    assert lines.current([ours, changed | {"name": "of another grid"}], grid.cells()) == [ours]
    changed["config"] = {"nothing": 1}
    assert lines.of_cell([changed], one) is None


def test_gains_are_shares_of_the_penaltys_and_of_the_deformation_trainings():
    table = page.gains(made()).splitlines()
    assert "| `digits` | flow gradient | 1 | 1.00 | 0 | 45.0 | 45.0 | 100 % | 65.0 | 69 % |" in table
    assert "| `digits` | input gradient | 0 | 1.00 | 0 | 15.0 | 45.0 | 33 % | 65.0 | 23 % |" in table
    assert "| `digits` | standard |  | 1.00 | 0 | 0.0 | 45.0 | 0 % | 65.0 | 0 % |" in table


def test_gains_compare_the_same_seeds():
    """A method that has the first seed only, beside others of which the deformation training has another second."""
    first = [one for one in made(seed=0) if one["method"] != "pixel adversarial"]
    second = [one | {"seed": 1} for one in first if one["method"] in ("standard", "flow gradient", "deformation")]
    for one in second:
        if one["method"] == "deformation":
            middle = one["seen"]["accuracies"]
            one["seen"] = one["seen"] | {"accuracies": [middle[0], middle[1] - 0.2, middle[2]]}
    table = page.gains(first + second).splitlines()
    assert "| `digits` | input gradient | 0 | 1.00 | 0 | 15.0 | 45.0 | 33 % | 65.0 | 23 % |" in table
    assert "| `digits` | deformation | 0 | 1.00 | 0, 1 | 55.0 | 45.0 | 122 % | 55.0 | 100 % |" in table
    apart = [one | {"seed": 2} for one in first if one["method"] in ("standard", "input gradient")]
    rest = [one for one in first + second if one["method"] != "input gradient"]
    assert "| `digits` | input gradient | 0 | 1.00 |  |  |  |  |  |  |" in page.gains(rest + apart).splitlines()


def test_the_page_is_written_from_the_lines(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(lines, "current", lambda found, cells: found)
    for one in made() + made(setting="mnist", seed=0):
        json_lines.append(tmp_path / "claims.jsonl", one)
    (tmp_path / "results.md").write_text(
        "<!-- claims state -->\n<!-- end -->\n<!-- claims verdicts -->\nstale\n<!-- end -->\n"
        "<!-- claims matched -->\n<!-- end -->\n"
        "<!-- plot claims-curves.png: Curves -->\n<!-- end -->\n<!-- claims cells -->\n<!-- end -->\n"
    )
    assert main(["report", "--results", str(tmp_path), "--output", str(tmp_path)]) == 0
    text = (tmp_path / "results.md").read_text()
    assert "**C1: holds.**" in text
    assert f"**20 cells of the grid are computed, {plan.to_come([])} are not.**" in text
    assert "| flow gradient | 1 | 98.5 | 60.0 | 50.0 | 25.0 | 43-57 | 60.0 | 30.0 | 0.50 (100 %) | 0.80 | 3 |" in text
    assert "![Curves](claims-curves.png)" in text
    assert "stale" not in text
    assert "`digits`: 200 test images, one seed; accuracies" in text
    assert "`deformation` keeps 20.0 % (`pixel adversarial` 30.0, standard 10.0); under" in text
    assert "`pixel adversarial` keeps 35.0 % (`deformation` 70.0, standard 5.0)." in text
    partly = judged.in_full(made() + [one for one in made(setting="mnist") if one["method"] != "input gradient"])
    assert "Not compared: `mnist`: not computed yet (input gradient)." in partly
    assert "**C2: holds.**" in partly
    capsys.readouterr()
    again = [one for one in made() if one["method"] != "deformation"]
    several = page.matched(made() + [one | {"seed": 1} for one in again])
    assert "means over 2 seeds (lowest-highest), one seed where no range stands" in several


def test_fronts_show_what_a_larger_loss_of_clean_accuracy_buys():
    table = page.fronts(made() + [one | {"seed": 1} for one in made()]).splitlines()
    assert "| `digits` | input gradient | 20.0 (0) | 20.0 (0) | 20.0 (0) | 20.0 (0) |" in table
    assert "| `digits` | flow gradient | 50.0 (1+) | 50.0 (1+) | 50.0 (1+) | 50.0 (1+) |" in table
    far = [one for one in made() if one["method"] != "flow gradient"]
    far += [line("flow gradient", 3.0, 0.965, 0.6, 0.5), line("flow gradient", 4.0, 0.9, 0.7, 0.5)]
    assert "| `digits` | flow gradient |  |  | 60.0 (3) | 60.0 (3) |" in page.fronts(far).splitlines()
    assert "digits" not in page.fronts([one for one in made() if one["method"] != "standard"])


def test_only_settings_have_panels():
    cells = [one for number in range(4) for one in made(setting=f"setting {number}")]
    for plot in (plots.curves, plots.costs):
        shown = [axes.get_title() for axes in plot(cells).axes if axes.get_visible()]
        assert shown == [f"setting {number}" for number in range(4)]


def test_methods_with_several_seeds_stand_in_the_order_of_their_cost(monkeypatch):
    monkeypatch.setattr(plots, "SHOWN", ("digits", "mnist"))
    cells = [one | {"passes": 3.0 + number} for number, one in enumerate(made())]
    several = cells + [one | {"seed": 1} for one in cells if one["method"] != "deformation"]
    (axes,) = plots.methods(several).axes
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows[0] == "standard (1)"
    assert "flow gradient (2.33)" in rows
    assert not any(row.startswith("deformation") for row in rows)  # one seed
    assert plots.methods(cells).axes == []


@pytest.mark.parametrize("lost", [False, True])
def test_measures_of_a_network_that_is_lost_do_not_stay_beside_those_of_another(tmp_path, monkeypatch, lost):
    one, old = grid.cells()[0], {"held_out": "old", "seen": "old"}
    monkeypatch.setattr(cell, "fit", lambda *_, **__: None)
    monkeypatch.setattr(cell, "_open", lambda *_: None)
    monkeypatch.setattr(cell, "MEASURES", dict.fromkeys((*old, "stability"), lambda _: "new"))
    Run(tmp_path).metrics.write_text(json.dumps({"step": 1, "seconds": 3.21}) + "\n")
    known = {"name": one.name, "train_seconds": 4.5 if lost else 3.2, "seconds": 1.0}
    known |= {"measured_at": dict.fromkeys(old, "abc")} | old
    found = cell.compute(one, tmp_path, measures=("seen", "stability"), known=known)
    kept = {} if lost else {"held_out": "old"}
    assert {name: found[name] for name in cell.MEASURES if name in found} == {
        **kept, "seen": "new" if lost else "old", "stability": "new"
    }  # fmt: skip
    assert found["measured_at"].keys() == {*kept, "seen", "stability"}


@pytest.mark.slow
def test_a_cell_is_trained_and_measured(tmp_path, monkeypatch):
    # The quick suite in place of `standard`: how a cell is measured, not how well.
    monkeypatch.setattr(cell, "suites", SimpleNamespace(quick=suites.quick, standard=suites.quick))
    setting = next(one for one in grid.SETTINGS if one.name.startswith("digits"))
    small = grid.replace(
        setting.config, epochs=1, model=grid.replace(setting.config.model, width=0.1), data=setting.config.data
    )
    one = grid.Cell(setting._replace(config=small, examples=4), "flow gradient", 1.0, 0)
    found = cell.compute(one, tmp_path / "run")
    assert cell.MEASURES.keys() <= found.keys()
    assert found["passes"] == 6.0
    assert json.loads(json.dumps(found)) == found
    old = dict.fromkeys(cell.MEASURES, "abc")
    known = {name: entry for name, entry in found.items() if name != "stability"} | {"measured_at": old}
    again = cell.compute(one, tmp_path / "run", known=known)
    assert again["stability"] == found["stability"]
    assert again["measured_at"] == old | {"stability": found["measured_at"]["stability"]}
