"Training that is killed ends where it would have ended; checkpoints that cannot be trusted are refused."
import json, math, os, pickle, random, signal, subprocess, sys, textwrap, time
from dataclasses import replace
from pathlib import Path
import pytest, torch
from cad_nb.core import ParamsError, seed_all
from cad_nb.data.manifest import write_manifest
from cad_nb.judge.evaluate import validation_auc
from cad_nb.learn import CheckpointError, NotFinite, TrainParams, average_of, crew, fit, follow, live, load_checkpoint, load_state, lr_at, optimizer_of, save_checkpoint, save_state, stale, train_epoch
from cad_nb.models.build import build
from cad_nb.models.cad import LossWeights
from test_learn_parallel import stored
from test_models import clips, model

TRAIN = TrainParams(variants=["cad"], fakes="corpus", epochs=4, patience=4, batch_size=4, accumulate=1, lr=2e-3, weight_decay=.01, warmup=.1, clip_norm=1., ema=.9, precision="bfloat16", compile=False, loss=LossWeights(1., 1., 1., .5, .5, .5, .1))
CPU = torch.device("cpu")

RUN = textwrap.dedent("""
    import os, signal, sys, threading
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from cad_nb.data.clips import Clips, eval_batches, n_batches, train_batches
    from cad_nb.data.manifest import read_manifest
    from cad_nb.judge.evaluate import validation_auc
    from cad_nb.learn import fit
    from test_learn import TRAIN
    from test_learn_parallel import BATCHES
    from test_models import model
    features, folder, die_at, die_after = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    df = read_manifest(features/"manifest.csv")
    train, val, steps = Clips(features, df, "train"), Clips(features, df, "val"), 0
    die = lambda: os.kill(os.getpid(), signal.SIGKILL)
    if die_after:
        timer = threading.Timer(die_after, die); timer.daemon = True; timer.start()
    def batches(epoch):
        global steps
        for b in train_batches(train, 4, 0, epoch, BATCHES):
            steps += 1
            if steps == die_at: die()
            yield b
    fit(model(), batches, n_batches(train, 4, BATCHES), lambda m: validation_auc(m, eval_batches(val, 4)), TRAIN, folder, dict(face_px=16, mouth_px=16, seed=0), progress_bar=False)
""").format(tests=str(Path(__file__).parent))

def run(features, folder, die_at=0, die_after=0.):
    done = subprocess.run([sys.executable, "-c", RUN, str(features), str(folder), str(die_at), str(die_after)], env=os.environ | dict(OMP_NUM_THREADS="1"), capture_output=True, text=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode

def test_killed_and_resumed_is_uninterrupted(tmp_path):
    "Killed at once, in an epoch after a whole one, and then at moments of chance, a state's writing included."
    features, whole, cut = tmp_path/"features", tmp_path/"whole", tmp_path/"cut"
    write_manifest(features/"manifest.csv", stored(features))
    start = time.monotonic()
    assert run(features, whole) == 0
    moments = random.Random(0).sample(range(100), 2)
    assert run(features, cut, die_at=2) == run(features, cut, die_at=8) == -signal.SIGKILL
    assert (cut/"state.safetensors").is_file()
    for m in moments: run(features, cut, die_after=.3 * (time.monotonic() - start) * m / 100)
    assert run(features, cut) == 0
    assert {p.name: p.read_bytes() for p in whole.iterdir()} == {p.name: p.read_bytes() for p in cut.iterdir()}
    assert {p.name for p in whole.iterdir()} == {"model.safetensors", "model.json"}

def learnt(m, n=3, batch=None, **changes):
    "Some steps of an epoch on made-up clips; what `train_epoch` gives."
    params = replace(TRAIN, precision="float32", **changes)
    b = batch or clips(); b.to = lambda device: b
    return train_epoch(m, [b]*n, n, 0, optimizer_of(m, params), None, params, crew(CPU), False)

def test_batches_that_make_one_step_are_one_batch():
    once, twice = model(), model()
    learnt(once, n=1); learnt(twice, n=2, accumulate=2)
    for a, b in zip(once.parameters(), twice.parameters()): torch.testing.assert_close(a, b)

def test_a_last_group_that_is_not_full_is_a_step_too():
    m, params, b = model(), replace(TRAIN, accumulate=2), clips(); b.to = lambda device: b
    optimizer = optimizer_of(m, params)
    train_epoch(m, [b]*5, 5, 0, optimizer, None, params, crew(CPU), False)
    assert {int(s["step"]) for s in optimizer.state.values()} == {3}
    with pytest.raises(ParamsError, match="train.accumulate"): replace(TRAIN, accumulate=0)

def test_nan_in_sound_stops_before_the_weights_move():
    m, b = model(), clips(); b.audio[2, 100] = float("nan")
    before = {k: v.clone() for k, v in m.state_dict().items()}
    with pytest.raises(NotFinite, match=r"sound of clips \[2\] holds NaN"): learnt(m, batch=b)
    assert all(torch.equal(v, m.state_dict()[k]) for k, v in before.items())

def test_a_bad_gradient_stops_before_the_weights_move():
    m = model(); m.head.weight.register_hook(lambda g: g * float("inf"))
    before = {k: v.clone() for k, v in m.named_parameters()}
    with pytest.raises(NotFinite, match=r"gradient is not finite on clips \[0, 1, 2, 3\]"): learnt(m)
    assert all(torch.equal(v, before[k]) for k, v in m.named_parameters())

def test_a_batch_without_a_clip_in_sync():
    m, b = model(), clips(); b.y_sync = torch.ones(4)
    means, _ = learnt(m, batch=b)
    assert means["nce"] == means["agree"] == 0 and all(map(math.isfinite, means.values())) and all(p.isfinite().all() for p in m.parameters())

@pytest.mark.parametrize("y", [0., 1.])
def test_one_class_alone(y, tmp_path):
    "Learning from it is defined; choosing an epoch by a validation of one class is refused."
    m, b = model(), clips(); b.y = b.y_video = b.y_audio = torch.full((4,), y); b.y_sync = torch.zeros(4); b.to = lambda device: b
    means, _ = learnt(m, batch=b)
    assert all(map(math.isfinite, means.values()))
    with pytest.raises(ValueError, match="clips of both kinds, by the label that is learnt"):
        fit(model(), lambda epoch: [b], 1, lambda m: validation_auc(m, [b]), TRAIN, tmp_path, dict(seed=0), progress_bar=False)

def test_clips_shorter_than_the_reach_are_refused():
    with pytest.raises(ValueError, match="a clip of 5 frames is too short for offsets of 5: in params.yaml, set `model.reach` below `prepare.frames`"): learnt(model(), batch=clips(T=5))

def test_a_damaged_state_is_said(tmp_path):
    m, path = model(), tmp_path/"state.safetensors"
    save_state(path, m, average_of(m), optimizer_of(m, TRAIN), dict(fingerprint="f"))
    whole = path.read_bytes()
    for bad in (whole[:1000], b"", b"\x80\x04N."):
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match="Remove it to start from the first epoch"): load_state(path, "f", m, None, optimizer_of(m, TRAIN))

def test_the_average_shares_what_does_not_learn(tmp_path):
    m = model(); m.video.requires_grad_(False)
    average, optimizer = average_of(m), optimizer_of(m, TRAIN)
    shared = {k for (k, p), a in zip(m.named_parameters(), average.parameters()) if p is a}
    assert shared == {k for k, p in m.named_parameters() if not p.requires_grad} == {f"video.{k}" for k, _ in m.video.named_parameters()}
    follow(average, m, .5)
    save_state(tmp_path/"state.safetensors", m, average, optimizer, dict(fingerprint="f"))
    seed_all(1); other = build(m.params, 16, 16); other.video.requires_grad_(False)
    other_average = average_of(other)
    assert load_state(tmp_path/"state.safetensors", "f", other, other_average, optimizer_of(other, TRAIN))
    for a, b in ((m, other), (average, other_average)): assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())

def test_the_log_starts_anew_and_leaves_dvc_alone(tmp_path):
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    for n in (3, 2):
        log = live(tmp_path/"log")
        for epoch in range(n): log(dict(epoch=epoch, val_auc=.5 + epoch/10, clips_s=80.))
    assert (tmp_path/"log"/"plots"/"metrics"/"val_auc.tsv").read_text().split() == ["step", "val_auc", "0", "0.5", "1", "0.6"]
    assert json.loads((tmp_path/"log"/"metrics.json").read_text()) == dict(val_auc=.6, clips_s=80., step=1)
    assert {p.name for p in tmp_path.iterdir()} == {".git", "log"}

def test_checkpoint_comes_back(tmp_path):
    save_checkpoint(tmp_path, model(), dict(face_px=16, mouth_px=16, seed=0))
    again, meta = load_checkpoint(tmp_path)
    assert meta["seed"] == 0 and all(torch.equal(a, b) for a, b in zip(model().state_dict().values(), again.state_dict().values()))

def test_checkpoints_that_cannot_be_trusted(tmp_path):
    with pytest.raises(CheckpointError, match="has no model.safetensors"): load_checkpoint(tmp_path)
    save_checkpoint(tmp_path, model(), dict(face_px=16, mouth_px=16))
    weights, meta = tmp_path/"model.safetensors", tmp_path/"model.json"
    whole = weights.read_bytes()
    class Bomb:
        def __reduce__(self): return (Path.touch, (tmp_path/"executed",))
    for bad in (whole[:1000], b"", pickle.dumps(Bomb())):
        weights.write_bytes(bad)
        with pytest.raises(CheckpointError, match="cannot be loaded"): load_checkpoint(tmp_path)
    assert not (tmp_path/"executed").exists()
    weights.write_bytes(whole)
    given = json.loads(meta.read_text())
    for other in (dict(dim=32), dict(align=False), dict(encoder="huge"), dict(layers=2)):
        meta.write_text(json.dumps(given | dict(model=given["model"] | other)))
        with pytest.raises(CheckpointError, match="cannot be loaded"): load_checkpoint(tmp_path)
    for other in ("", "[]", "{}"):
        meta.write_text(other)
        with pytest.raises(CheckpointError, match="cannot be loaded"): load_checkpoint(tmp_path)

def test_rate_rises_and_falls():
    rates = [lr_at(s, 100, .1) for s in range(100)]
    assert max(rates) == 1 and rates[0] < .2 and rates[-1] < .01 and rates.index(1) in (9, 10)

def test_stale():
    rows = lambda *aucs: [dict(val_auc=a) for a in aucs]
    assert stale(rows(.8, .7, .8), 2) and not stale(rows(.8, .7, .9), 2) and not stale(rows(.8, .7), 2)
