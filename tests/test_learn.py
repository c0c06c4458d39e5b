"Training that is killed ends where it would have ended; checkpoints that cannot be trusted are refused."
import json, os, pickle, signal, subprocess, sys, textwrap, time
from pathlib import Path
import pytest, torch
from cad_nb.learn import CheckpointError, lr_at, load_checkpoint, save_checkpoint, stale
from test_models import model

RUN = textwrap.dedent("""
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    from cad_nb.learn import LossWeights, TrainParams, fit
    from test_models import clips, model
    folder, die_at = sys.argv[1], int(sys.argv[2])
    params = TrainParams(variants=["cad"], fakes="corpus", epochs=4, patience=4, batch_size=4, lr=2e-3, weight_decay=.01, warmup=.1, clip_norm=1., ema=.9, precision="bfloat16", loss=LossWeights(1., 1., 1., .5, .5, .5, .1))
    steps = 0
    def batches(epoch):
        global steps
        for i in range(3):
            steps += 1
            if steps == die_at: os.kill(os.getpid(), signal.SIGKILL)
            b = clips(seed=10*epoch + i); b.to = lambda device, b=b: b
            yield b
    def validate(m): return float(m.head.weight.sum().detach())  # anything that depends on the weights
    fit(model(), batches, 3, validate, params, folder, dict(face_px=16, mouth_px=16, seed=0), progress_bar=False)
""").format(tests=str(Path(__file__).parent))

def run(folder, die_at=0):
    return subprocess.run([sys.executable, "-c", RUN, str(folder), str(die_at)], env=os.environ | dict(OMP_NUM_THREADS="1"), capture_output=True, text=True)

@pytest.mark.parametrize("die_at", [2, 8])
def test_killed_and_resumed_is_uninterrupted(tmp_path, die_at):
    whole, cut = tmp_path/"whole", tmp_path/"cut"
    assert run(whole).returncode == 0
    assert run(cut, die_at).returncode == -signal.SIGKILL
    again = run(cut)
    assert again.returncode == 0, again.stderr
    for name in ("model.safetensors", "model.json"): assert (whole/name).read_bytes() == (cut/name).read_bytes()
    assert not list(cut.glob("state*"))

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
    other = json.loads(meta.read_text()); other["model"]["dim"] = 32; meta.write_text(json.dumps(other))
    with pytest.raises(CheckpointError, match="cannot be loaded"): load_checkpoint(tmp_path)

def test_rate_rises_and_falls():
    rates = [lr_at(s, 100, .1) for s in range(100)]
    assert max(rates) == 1 and rates[0] < .2 and rates[-1] < .01 and rates.index(1) in (9, 10)

def test_stale():
    rows = lambda *aucs: [dict(val_auc=a) for a in aucs]
    assert stale(rows(.8, .7, .8), 2) and not stale(rows(.8, .7, .9), 2) and not stale(rows(.8, .7), 2)
