"Several processes learn what one would: gradients, histories, errors and reports. Real processes, over gloo, as `accelerate launch` starts them; this file is also what they run."
import json, os, subprocess, sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pytest, torch
from cad_nb.core import SAMPLES_PER_FRAME, ParamsError, seed_all
from cad_nb.data.clips import BatchParams, Clips, eval_batches, n_batches, train_batches
from cad_nb.data.manifest import as_manifest
from cad_nb.judge.evaluate import validation_auc
from cad_nb.learn import NotFinite, TrainParams, add_gradient, crew, fit, part_of
from cad_nb.models.cad import VARIANTS, LossWeights
from cad_nb.models.parallel import n_processes, share_norms
from test_models import NAN, clips, model

CPU, BATCH = torch.device("cpu"), 8
TRAIN = TrainParams(variants=["cad"], fakes="corpus", epochs=2, patience=2, batch_size=BATCH, accumulate=1, lr=2e-3, weight_decay=.01, warmup=.1, clip_norm=1., ema=.9, precision="float32", compile=False, loss=LossWeights(1., 1., 1., .5, .5, .5, .1))
BATCHES = BatchParams(balance="label", real=.5, epoch_clips=24, flip=.5, brightness=.1, contrast=.2, blur=.1, noise=.02, gain_db=6., tilt=.2, audio_noise=.02, drop_video=.2, drop_audio=.2, prefetch=2, sharp=1)


def both(seed=0):
    "Eight clips whose halves have little in common: what is known, seen and heard differs."
    a, b = clips(seed=seed), clips(seed=seed + 1)
    a.has_audio = torch.tensor([True, True, False, True]); b.has_video = torch.tensor([False, True, True, False])
    b.y_sync = torch.tensor([1., 1., NAN, 1.])       # no clip of the second half is in sync
    b.y_audio = torch.full((4,), NAN); b.idx = b.idx + 4
    return SimpleNamespace(**{k: torch.cat([v, getattr(b, k)]) for k, v in vars(a).items()})


def gradients(part):
    "Of each variant: the losses, and the gradient of each weight."
    found = {}
    for variant in VARIANTS:
        learner = crew(CPU).prepare_model(share_norms(model(variant))).train()
        row = add_gradient(learner, SimpleNamespace(**{k: v[part] for k, v in vars(both()).items()}), TRAIN)
        found[variant] = row, {k.removeprefix("module."): p.grad for k, p in learner.named_parameters() if p.grad is not None}, {k.removeprefix("module."): v for k, v in learner.named_buffers()}
    return found


def refusals(part):
    "What a process says of NaN in the clip of another, and of batches that cannot be shared out."
    batch = both(); batch.audio[6] = NAN
    mine = SimpleNamespace(**{k: v[part] for k, v in vars(batch).items()})
    learner, said = crew(CPU).prepare_model(share_norms(model())).train(), []
    mine.to = lambda device: mine
    for error, attempt in ((NotFinite, lambda: add_gradient(learner, mine, TRAIN)), (ParamsError, lambda: part_of(7, CPU)),
                           (ValueError, lambda: fit(model(), lambda epoch: [mine], 1, lambda m: .5, replace(TRAIN, batch_size=4), "nowhere", dict(seed=0), progress_bar=False))):
        with pytest.raises(error) as raised: attempt()
        said.append(str(raised.value))
    return said


def stored(folder):
    "A few made-up clips in two shards, as `prepare` stores them."
    from safetensors.numpy import save_file
    rng, table = np.random.default_rng(0), []
    (folder/"a").mkdir(parents=True)
    for s in range(2):
        ids = [f"a/{s}_{i}.mp4" for i in range(18)]
        save_file(dict(face=rng.integers(0, 256, (18, 2, 16, 16, 3), np.uint8), mouth=rng.integers(0, 256, (18, 16, 16, 16), np.uint8), audio=rng.integers(-9000, 9000, (18, 16*SAMPLES_PER_FRAME), np.int16),
            has_video=np.ones(18, np.uint8), has_audio=np.ones(18, np.uint8)), folder/"a"/f"shard-{s:05}.safetensors")
        (folder/"a"/f"shard-{s:05}.json").write_text(json.dumps(dict(windows=[dict(id=i, start_frame=0) for i in ids])))
        table += [dict(id=id, corpus="a", path=id[2:], method="swap" if i % 2 else "real", status="ok", split=("train", "val")[s], y=i % 2, y_video=i % 2, y_audio=0, y_sync=0) for i, id in enumerate(ids)]
    return as_manifest(table)


def learn(folder, out):
    "Train on the stored clips, in steps of one batch and of two; the histories, and what was reported."
    df, found = stored(Path(folder)) if crew(CPU).is_main_process else None, {}
    crew(CPU).wait_for_everyone()
    from accelerate.utils import broadcast_object_list
    df, = broadcast_object_list([df])
    train, val, part = Clips(folder, df, "train"), Clips(folder, df, "val"), part_of(BATCH, CPU)
    for accumulate in (1, 2):
        reported = []
        rows = fit(model(), lambda epoch: train_batches(train, BATCH, 0, epoch, BATCHES, part=part), n_batches(train, BATCH, BATCHES), lambda m: validation_auc(m, eval_batches(val, BATCH)),
                   replace(TRAIN, accumulate=accumulate), Path(out)/str(accumulate), dict(seed=0, face_px=16, mouth_px=16), reported.append, progress_bar=False)
        found[accumulate] = rows, [sorted(set(row) - set(rows[0])) for row in reported]
    return found


def launch(n, *command, folder=None):
    env = {k: v for k, v in os.environ.items() if k != "CAD_RESTARTED"} | dict(OMP_NUM_THREADS="1", CAD_THREADS="1")
    run = subprocess.run([sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(n), "--num_machines", "1", "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no", *map(str, command)],
                         capture_output=True, text=True, env=env, cwd=folder)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    "What each of two processes found."
    folder = tmp_path_factory.mktemp("two")
    launch(2, __file__, folder)
    return [torch.load(folder/f"{rank}.pt", weights_only=False) for rank in range(2)], folder


def test_two_processes_have_the_gradient_of_one(two):
    one = gradients(slice(0, 8))
    for found in two[0]:
        for variant, (row, grads, buffers) in one.items():
            row2, grads2, buffers2 = found["gradients"][variant]
            assert row2 == pytest.approx(row, rel=1e-5, abs=1e-6), variant
            assert grads2.keys() == grads.keys()
            size = torch.stack([g.norm() for g in grads.values()]).norm()
            for k, g in grads.items(): assert (grads2[k] - g).norm() <= 1e-5 * size, f"{variant} {k}"
            for k, b in buffers.items(): torch.testing.assert_close(buffers2[k], b, rtol=1e-5, atol=1e-6)


def test_two_processes_hold_the_same_weights_to_the_bit(two):
    (first, second), _ = two
    for variant in VARIANTS:
        assert all(torch.equal(g, second["gradients"][variant][1][k]) for k, g in first["gradients"][variant][1].items())


def test_two_processes_learn_what_one_does(two, tmp_path):
    (first, second), folder = two
    for accumulate, (rows, _) in learn(tmp_path/"features", tmp_path/"models").items():
        assert second["learn"][accumulate][0] == first["learn"][accumulate][0]
        for row, row2 in zip(rows, first["learn"][accumulate][0], strict=True):
            assert abs(row.pop("val_auc") - row2.pop("val_auc")) < .05   # of 18 clips: a single pair in another order is 0.012
            assert row2 == pytest.approx(row, rel=1e-3, abs=1e-3)
        assert {p.name for p in (folder/"models"/str(accumulate)).iterdir()} == {"model.safetensors", "model.json"}


def test_the_first_alone_reports_and_its_speed_is_no_part_of_the_history(two):
    (first, second), _ = two
    assert first["learn"][1][1] == [["clips_s"]]*2 and second["learn"][1][1] == []


def test_all_stop_for_the_same_reason(two):
    (first, second), _ = two
    assert first["refusals"] == second["refusals"]
    nan, uneven, whole = first["refusals"]
    assert "of clips [6]" in nan and "2 processes cannot share evenly; the nearest that they can is 8" in uneven and "hand `part_of` to `train_batches`" in whole


def test_a_part_is_varied_as_within_the_whole(tmp_path):
    df = stored(tmp_path); c = Clips(tmp_path, df, "train")
    for whole, *parts in zip(*(train_batches(c, BATCH, 0, 1, BATCHES, part=p) for p in (slice(None), slice(0, 3), slice(3, 8)))):
        for k, v in vars(whole).items(): assert torch.equal(torch.cat([getattr(p, k) for p in parts]).nan_to_num(-7), v.nan_to_num(-7)), k


def test_a_stage_on_two_processes_has_one_report(tmp_path):
    from test_stages import write_notebook
    (tmp_path/"params.yaml").write_text("seed: 3\n")
    write_notebook(tmp_path/"nbs"/"pipelines"/"1_toy.ipynb", "import torch\nfrom pathlib import Path\nfrom cad_nb.learn import part_of\npart = part_of(8, torch.device('cpu'))\nPath(f'{part.start}-{part.stop}').touch()\nprint(f'I take {part.start} to {part.stop}')")
    said = launch(2, Path(sys.executable).parent/"cad", "stage", "toy", folder=tmp_path)
    assert said.count("I take 0 to 4") == 1 and "I take 4" not in said
    assert {p.name for p in (tmp_path/"nbs"/"pipelines").iterdir()} == {"1_toy.ipynb", "0-4", "4-8"}
    assert {p.name for p in (tmp_path/"out"/"reports").iterdir()} == {"1_toy.ipynb", "1_toy.html"} and not list((tmp_path/"out"/"partial").iterdir())


if __name__ == "__main__":
    out = Path(sys.argv[1])
    part = part_of(BATCH, CPU)
    assert n_processes() == 2
    found = dict(gradients=gradients(part), refusals=refusals(part), learn=learn(out/"features", out/"models"))
    torch.save(found, out/f"{crew(CPU).process_index}.pt")
