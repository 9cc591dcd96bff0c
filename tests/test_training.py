"""The training loop on made-up pictures: it learns, resumes to the bit, anneals, exports."""

from __future__ import annotations

import csv
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from hvcompress.errors import InputError, OutputError, UsageError
from hvcompress.image_reading import read_picture
from hvcompress.loading import load_model
from hvcompress.rate import bits
from hvcompress.training import __main__ as command_line
from hvcompress.training import export as exporting
from hvcompress.training import trainer
from hvcompress.training.data import Crops, find_images, large_enough, to_unit
from hvcompress.training.export import export
from hvcompress.training.muon import Muon, orthogonalise
from hvcompress.training.objective import evaluate, total_correlation
from hvcompress.training.trainer import (
    Reporter,
    append_csv,
    drop_later_rows,
    learning_rate,
    read_recipe,
    start,
    train,
    train_step,
    validate,
)

RECIPE = """
[model]
knots = 3
widths = { 4 = 16, 8 = 16, 16 = 16, 32 = 16, 64 = 16 }
encoder_blocks = { 4 = 1, 8 = 1, 16 = 1, 32 = 1, 64 = 1 }
synthesis_blocks = { 8 = 1, 4 = 1 }
latents = [
  { stride = 64, channels = 4, blocks = 1 },
  { stride = 32, channels = 4, blocks = 1 },
  { stride = 16, channels = 8, blocks = 1 },
  { stride = 16, channels = 8, blocks = 1 },
  { stride = 8, channels = 4, blocks = 1 },
  { stride = 8, channels = 4, blocks = 1 },
]

[training]
batch = 2
patch = 64
anneal_batch = 3
anneal_patch = 128
held_out = 2
warmup = 2
validate_every = 4
checkpoint_seconds = 0.0
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six small pictures of coloured waves."""
    folder = tmp_path_factory.mktemp("photos")
    y, x = np.mgrid[0:128, 0:144]
    for number in range(6):
        planes = [128 + 100 * np.sin((x * (number + 1) + y * k) / 30) for k in range(3)]
        Image.fromarray(np.stack(planes, 2).astype(np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text(RECIPE)
    return path


def run(recipe, folder, out, steps=None, anneal=None):
    return train(recipe, folder, out, device=torch.device("cpu"), steps=steps, anneal=anneal)


def weights(path):
    return torch.load(path / "checkpoint.pt", weights_only=True)["average"]


def step_of(path):
    return torch.load(path / "checkpoint.pt", weights_only=True)["step"]


def changed(recipe, path, old, new):
    """The recipe with one setting changed, as a new file."""
    text = recipe.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    return path


def interrupt(monkeypatch, at):
    """Ctrl-C in the middle of the step that leads to step `at`, once."""

    def interrupted_step(state, *rest):
        if state.step + 1 == at:
            signal.raise_signal(signal.SIGINT)
        return train_step(state, *rest)

    monkeypatch.setattr(trainer, "train_step", interrupted_step)


def test_resumes_to_the_step_then_anneals_and_exports(recipe, folder, tmp_path):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    run(recipe, folder, straight, steps=8)
    run(recipe, folder, broken, steps=3)
    run(recipe, folder, broken, steps=8)
    left, right = weights(straight), weights(broken)
    assert all(torch.equal(left[name], right[name]) for name in left)

    branch = run(recipe, folder, straight, anneal=4)
    assert branch.parent == straight and (branch / "finished").exists()
    rows = list(csv.DictReader(open(branch / "validation.csv")))
    assert {"bpp", "psnr", "bpp_1", "bpp_6"} <= set(rows[0])

    export(branch, "waves", folder, tmp_path / "waves", "## Data\n\nWaves.")
    card = (tmp_path / "waves" / "CARD.md").read_text()
    assert "Trained for 12 steps of 2 crops of 64 px, the last 4 of 3 of 128 px" in card and card.endswith("Waves.\n")
    with pytest.raises(InputError):
        export(branch, "waves", folder, tmp_path / "waves")
    codec = load_model(tmp_path / "waves", "cpu")
    picture = read_picture(folder / "0.png")
    encoded = codec.encode(picture, 70)
    assert len(encoded.data) < picture.pixels.size / 4


def test_an_interrupted_branch_goes_on_to_the_same_bits(recipe, folder, tmp_path, monkeypatch):
    """Ctrl-C saves a whole step, between checkpoints; a trunk and a branch go on from there. What was made is told."""
    seldom = changed(recipe, tmp_path / "seldom.toml", "checkpoint_seconds = 0.0", "checkpoint_seconds = 1e6")
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    run(seldom, folder, straight, steps=3)
    interrupt(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        run(seldom, folder, broken)
    assert step_of(broken) == 2
    run(broken / "recipe.toml", folder, broken, steps=3)  # the recipe that lies in the run's own folder

    whole = run(seldom, folder, straight, anneal=4)
    interrupt(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        run(seldom, folder, broken, anneal=4)
    branch = broken / "anneal-3-4"
    assert step_of(branch) == 5 and not (branch / "finished").exists()

    monkeypatch.setattr(exporting, "FIT_CROPS", 2)
    export(branch, "waves", folder, tmp_path / "unfinished")
    card = (tmp_path / "unfinished" / "CARD.md").read_text()
    assert "for 5 steps of 2 crops of 64 px, the last 2 of 3 of 128 px while the learning rate was falling to" in card
    assert "would have reached in 4, from 4 photographs" in card and "--steps 3\n" in card
    assert "--anneal 4  # stopped after 2\n" in card

    assert run(seldom, folder, broken, anneal=4) == branch and (branch / "finished").exists()
    left, right = weights(whole), weights(branch)
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_branch_may_be_steered(recipe, folder, tmp_path, monkeypatch):
    """By other learning rates, not by another network; the CARD then does not say that its recipe made the trunk."""
    out = tmp_path / "run"
    run(recipe, folder, out, steps=2)
    slower = changed(recipe, tmp_path / "slower.toml", "batch = 2\n", "batch = 1\nmuon_lr = 1e-4\n")
    wider = changed(recipe, tmp_path / "wider.toml", "{ 4 = 16, 8 = 16,", "{ 4 = 16, 8 = 32,")
    fewer = changed(recipe, tmp_path / "fewer.toml", "held_out = 2", "held_out = 3")
    for other in (slower, wider):
        with pytest.raises(UsageError, match="differs from"):
            run(other, folder, out, steps=4)
    for other in (wider, fewer):
        with pytest.raises(UsageError, match="must be those of its trunk"):
            run(other, folder, out, anneal=1)
    branch = run(slower, folder, out, anneal=1)
    with pytest.raises(UsageError, match="finished already"):
        run(slower, folder, out, anneal=1)
    with pytest.raises(UsageError, match="0 steps"):
        run(slower, folder, out, anneal=0)

    monkeypatch.setattr(exporting, "FIT_CROPS", 2)
    for made, words in ((branch, "those before had another"), (out, "Made by the `recipe.toml` here")):
        export(made, "waves", folder, tmp_path / made.name / "waves")
        card = (tmp_path / made.name / "waves" / "CARD.md").read_text()
        assert words in card and "steps of 2 crops of 64 px" in card
        assert ("--steps 2\n" in card, "--anneal" in card) == (made == out, made == branch)


def test_going_on_from_an_older_checkpoint_drops_later_rows(recipe, folder, tmp_path):
    """As after a hard kill: what came after the checkpoint is made again, and stands in the tables once."""
    out = tmp_path / "run"
    run(recipe, folder, out, steps=4)
    shutil.copy(out / "checkpoint.pt", tmp_path / "older.pt")
    run(recipe, folder, out, steps=8)
    table = (out / "validation.csv").read_text()
    (out / "log.csv").write_text("step,seconds,loss\n2,1.0,3.0\n4,2.0,2.0\n6,3.0,1.0\n")
    shutil.copy(tmp_path / "older.pt", out / "checkpoint.pt")
    run(recipe, folder, out, steps=8)
    assert (out / "validation.csv").read_text() == table
    assert [row["step"] for row in csv.DictReader(open(out / "log.csv"))] == ["2", "4"]
    torn = tmp_path / "torn.csv"
    torn.touch()  # a kill between opening and writing
    drop_later_rows(torn, 4)
    append_csv(torn, {"step": 50})
    assert torn.read_text().split() == ["step", "50"]


def test_a_gradient_that_is_not_finite_skips_the_step(recipe, folder, tmp_path, capsys):
    settings = read_recipe(recipe)
    crops = Crops(find_images(folder), settings.patch, settings.downscale, settings.seed)
    image, noise = to_unit(crops.batch(0, 2), torch.device("cpu")), torch.Generator()
    state = start(settings, crops, torch.device("cpu"))
    reporter = Reporter(settings, tmp_path, image)
    hook = state.model.encoder.posteriors[0].mean.weight.register_hook(lambda gradient: gradient * torch.inf)
    before = [weight.detach().clone() for weight in state.model.parameters()]
    for stepped in (False, True):
        outcome, found = train_step(state, settings, image, noise)
        assert found == stepped and torch.isfinite(outcome.loss)
        same = all(torch.equal(was, weight) for was, weight in zip(before, state.model.parameters(), strict=True))
        assert same != stepped
        reporter.after_step(state, outcome, found, at_end=False)
        assert ("step was skipped" in capsys.readouterr().out) != stepped
        hook.remove()


def test_training_lowers_the_loss(recipe, tmp_path):
    """On one batch seen again and again, from the transform codec that it starts as."""
    generator = np.random.default_rng(0)
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):  # discs: edges, which no linear transform compacts well
        y, x = np.mgrid[0:64, 0:64]
        picture = np.full((64, 64, 3), 128.0)
        for _ in range(6):
            centre, radius = generator.uniform(0, 64, 2), generator.uniform(5, 20)
            picture[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2] = generator.uniform(0, 255, 3)
        Image.fromarray(picture.astype(np.uint8)).save(photos / f"{number}.png")
    settings = read_recipe(recipe)
    crops = Crops(sorted(photos.iterdir()), 64, (1.0, 1.0), 0)
    image, noise = to_unit(crops.batch(0, 2), torch.device("cpu")), torch.Generator()
    state = start(settings, crops, torch.device("cpu"))
    losses = [train_step(state, settings, image, noise)[0].loss.item() for _ in range(60)]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


def test_continues_from_an_exported_model(recipe, folder, tmp_path):
    """At once as good as the model, also as part of a deeper network; another width or a shallower one is refused."""
    branch = tmp_path / "run"
    run(recipe, folder, branch, steps=6)
    run(recipe, folder, branch, anneal=2)
    export(branch / "anneal-6-2", "waves", folder, tmp_path / "waves")
    settings = replace(read_recipe(recipe), start=str(tmp_path / "waves"))
    crops = Crops(sorted(folder.iterdir()), 64, (1.0, 1.0), 0)
    images = to_unit(crops.batch(0, 32), torch.device("cpu"))
    original = start(read_recipe(recipe), crops, torch.device("cpu"))
    original.load(branch / "anneal-6-2" / "checkpoint.pt")
    expected = validate(original.average, images, settings)
    deeper = replace(settings.model, synthesis_blocks={8: 2, 4: 2})
    for config in (settings.model, deeper):
        state = start(replace(settings, model=config), crops, torch.device("cpu"))
        for row, wanted in zip(validate(state.average, images, settings), expected, strict=True):
            assert row["psnr"] == pytest.approx(wanted["psnr"], abs=0.1)
            assert row["bpp"] == pytest.approx(wanted["bpp"], rel=0.03)
    wider = replace(settings.model, widths={**settings.model.widths, 16: 32})
    *coarser, finest = settings.model.latents
    shallower = replace(settings.model, latents=(*coarser, replace(finest, blocks=0)))
    for config in (wider, shallower, replace(settings.model, synthesis_blocks={8: 0, 4: 1})):
        with pytest.raises(UsageError, match="does not fit"):
            start(replace(settings, model=config), crops, torch.device("cpu"))


def test_unknown_setting_is_refused(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE + "learning_rat = 1\n")
    with pytest.raises(UsageError):
        read_recipe(path)


@pytest.mark.parametrize("layers", [{1: 1.0}, {1: 4.0}, {1: 1.0, 2: 4.0}])
def test_total_correlation_joins_the_loss_with_its_weight(recipe, folder, layers):
    """The loss is linear in each weight, 1 is none, and the rates do not change."""
    settings = read_recipe(recipe)
    crops = Crops(find_images(folder), settings.patch, settings.downscale, settings.seed)
    model = start(settings, crops, torch.device("cpu")).model
    image = to_unit(crops.batch(0, 6), torch.device("cpu"))
    quality, offsets = torch.tensor([10, 30, 50, 70, 80, 90]), torch.zeros(6, 6, dtype=torch.long)

    def outcome(beta_tc):
        noise = torch.Generator().manual_seed(1)
        return evaluate(
            model, image, quality, offsets, noise=noise, weight_exponent=0.0, beta_tc=beta_tc, images=len(crops.images)
        )

    found, none = outcome(layers), outcome({layer: 1.0 for layer in layers})
    double = outcome({layer: 2 * weight - 1 for layer, weight in layers.items()})
    assert torch.equal(found.rates, none.rates)
    added = found.loss - none.loss
    torch.testing.assert_close(double.loss - none.loss, 2 * added, rtol=1e-3, atol=1e-5)
    assert (added.item() == 0) == all(weight == 1 for weight in layers.values())
    if added.requires_grad and added.item() != 0:
        number = max(layers)
        weight = model.encoder.posteriors[number - 1].mean.weight
        (gradient,) = torch.autograd.grad(added, weight)
        assert gradient.abs().max() > 0  # though the latents are quantized
        with torch.no_grad():
            weight -= 1e-3 * gradient / gradient.norm()
        assert outcome(layers).loss - outcome({layer: 1.0 for layer in layers}).loss < added


def test_total_correlation_is_that_of_all_positions():
    """Channels that say the same have one, independent ones do not; a large layer is sampled, at the same scale."""
    source = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(2))
    other = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    step = torch.full((4, 2, 1, 1), 0.2)

    def bits_per_position(*channels):
        mean = torch.cat(channels, 1)
        total = total_correlation(mean, step, 4, torch.Generator().manual_seed(4))
        return total.mean().item() / mean[0, 0].numel()

    # I(a; a + noise) of a Gaussian channel with the variance of two boxes, deviation 1: 1/2 log2 of 1 / (1 - rho^2)
    rho = 1 / (1 + 0.2**2 / 12)
    assert bits_per_position(source, source) == pytest.approx(-0.5 * np.log2(1 - rho**2), abs=0.4)
    assert abs(bits_per_position(source, other)) < 0.4
    large = source.repeat(1, 1, 3, 3)
    assert bits_per_position(large, large) == pytest.approx(bits_per_position(source, source), abs=0.6)


def test_a_run_with_total_correlation_is_a_run(recipe, folder, tmp_path):
    with_penalty = tmp_path / "recipe.toml"
    with_penalty.write_text(RECIPE + "beta_tc = { 1 = 4.0 }\n")
    assert read_recipe(with_penalty).beta_tc == {1: 4.0}
    run(with_penalty, folder, tmp_path / "with", steps=3)
    run(recipe, folder, tmp_path / "without", steps=3)
    found, other = weights(tmp_path / "with"), weights(tmp_path / "without")
    assert any(not torch.equal(found[name], other[name]) for name in found)
    assert all(torch.isfinite(value).all() for value in found.values())


@pytest.mark.parametrize("entry", ["0 = 2.0", "7 = 2.0", "1 = -1.0", "1 = nan"])
def test_weights_of_total_correlation_that_make_no_sense(tmp_path, entry):
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE + f"beta_tc = {{ {entry} }}\n")
    with pytest.raises(UsageError, match="beta_tc"):
        read_recipe(path)


@pytest.mark.parametrize("setting", ["patch = 100", "anneal_patch = 32"])
def test_patches_the_network_cannot_take_are_refused(tmp_path, setting):
    path = tmp_path / "recipe.toml"
    name = setting.split()[0]
    path.write_text("\n".join(setting if line.startswith(name + " ") else line for line in RECIPE.splitlines()))
    with pytest.raises(UsageError, match=f"{name} must be a multiple of 64"):
        read_recipe(path)


def test_empty_folder_is_refused(recipe, tmp_path):
    with pytest.raises(InputError):
        run(recipe, tmp_path, tmp_path / "run", steps=1)


def test_command_line_says_what_is_wrong(recipe, tmp_path):
    command = [
        sys.executable,
        "-m",
        "hvcompress.training",
        str(recipe),
        "--data",
        str(tmp_path),
        "--out",
        str(tmp_path / "o"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == InputError.exit_code and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("[model]", "[model", "not TOML"),
        ("[model]", "[modell]", "there is no [model]"),
        ("[model]", "[notes]\n[model]", "unknown settings: notes"),
        ("knots = 3", "", "[model] lacks 'knots'"),
        ("channels = 8, blocks = 1 },\n  { stride = 8", "chanels = 8, blocks = 1 },\n  { stride = 8", "chanels"),
        ("held_out = 2", "held_out = 0", "held_out must be a whole number above 0"),
        ("warmup = 2", "warmup = 0", "warmup must be"),
        ("validate_every = 4", "validate_every = 0", "validate_every must be"),
        ("anneal_batch = 3", 'anneal_batch = "3"', "anneal_batch must be"),
        ("warmup = 2", "warmup = 2\ndownscale = 0.6", "not iterable"),
        ("warmup = 2", "warmup = 2\ndrawn_share = 1.5", "drawn_share must be a number between 0 and 1"),
        ("warmup = 2", 'warmup = 2\ndrawn_share = "some"', "drawn_share must be"),
    ],
)
def test_a_recipe_that_makes_no_sense(recipe, tmp_path, old, new, words):
    with pytest.raises(UsageError) as raised:
        read_recipe(changed(recipe, tmp_path / "recipe.toml", old, new))
    assert words in str(raised.value) and "recipe.toml: " in str(raised.value)


def test_ordinary_mistakes_are_one_line(recipe, folder, tmp_path, monkeypatch, capsys):
    spoilt = tmp_path / "spoilt"
    shutil.copytree(folder, spoilt)
    (spoilt / "7.jpg").write_bytes(b"not a picture")
    occupied = tmp_path / "occupied"
    occupied.touch()

    def said(*arguments):
        monkeypatch.setattr(sys, "argv", ["training", *map(str, arguments), "--steps", "1"])
        code, lines = command_line.main(), capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("hvcompress.training: ")
        return code, lines[0]

    code, line = said(tmp_path / "missing.toml", "--data", folder, "--out", tmp_path / "run")
    assert code == InputError.exit_code and "missing.toml: no such file" in line
    code, line = said(recipe, "--data", folder, "--out", tmp_path / "run", "--device", "gpu")
    assert code == UsageError.exit_code and "unknown device" in line
    code, line = said(recipe, "--data", folder, "--out", occupied)
    assert code == OutputError.exit_code and "occupied" in line
    code, line = said(recipe, "--data", spoilt, "--out", tmp_path / "run")
    assert code == InputError.exit_code and "7.jpg: cannot identify" in line


def test_hidden_files_are_no_photographs(folder, tmp_path):
    photos = tmp_path / "photos"
    shutil.copytree(folder, photos)
    (photos / "._0.png").write_bytes(b"what macOS keeps beside a file")
    found = find_images(photos)
    assert [path.name for path in found] == [f"{number}.png" for number in range(6)]
    assert large_enough(found, 128) == found and large_enough(found, 129) == []


def test_schedule():
    assert learning_rate(0, 10, None, 0) == pytest.approx(0.1)
    assert learning_rate(500, 10, None, 0) == 1.0
    assert learning_rate(150, 10, 100, 100) == pytest.approx(0.5)
    assert learning_rate(200, 10, 100, 100) == 0.0


def test_bits_are_a_probability():
    symbols = torch.arange(-400.0, 401.0)
    for index in (0.0, 20.0, 40.0, 55.5):
        total = torch.exp2(-bits(symbols, torch.full_like(symbols, index))).sum().item()
        assert total == pytest.approx(1.0, abs=1e-3)


def test_bits_gradient_points_inward_at_the_bounds():
    index = torch.tensor([-5.0], requires_grad=True)
    bits(torch.tensor([3.0]), index).sum().backward()  # a surprise: the scale should grow
    assert index.grad.item() <= 0


@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16)])
def test_orthogonalise(shape):
    torch.manual_seed(0)
    singular = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
    assert 0.5 < singular.min() and singular.max() < 1.5


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_step_of_muon(layout):
    """From rest: the update is the orthogonalised gradient, whatever the memory layout and the company."""
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(6, 4, 3, 3).contiguous(memory_format=layout)) for _ in range(2)]
    weights.append(torch.nn.Parameter(torch.randn(8, 4, 1, 1)))
    before = [weight.detach().clone() for weight in weights]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    Muon(weights, lr=0.01, momentum=0.9).step()
    for weight, was in zip(weights, before, strict=True):
        matrix = weight.grad.flatten(1)
        expected = orthogonalise(matrix[None])[0] * 0.01 * 0.2 * max(matrix.shape) ** 0.5
        assert torch.allclose(was - weight, expected.view_as(was), atol=1e-5)
