"""The whole pipeline in the smallest sizes that still have people, methods and both classes in every split: `python tests/smoke_params.py FOLDER` rewrites its params.yaml."""
import sys
from pathlib import Path
import yaml

SMALL = dict(
    forge=dict(workers=1, fakeavceleb=dict(identities=10, reals=1, fakes=1), faceforensics=dict(pairs=2)),
    split=dict(train=0.5, val=0.2, test=0.3),
    prepare=dict(workers=1, shard_clips=32),
    model=dict(dim=32, layers=1, heads=2),
    train=dict(variants=["naive", "cad"], epochs=2, patience=2, batch_size=16),
    evaluate=dict(bootstrap=20),
    attribute=dict(n_steps=2),
    complementarity=dict(variants=["cad", "video_only", "audio_only", "sync_only"], seeds=[0, 1], epochs=1, workers=1, probe_c=[0.1], map_clips=40,
        grid={"loss.token": [0.0], "loss.logit": [], "loss.nce": [], "model.temperature": []}, grid_epochs=1),
)


def merged(params, small):
    "Replace values, inner maps key by key; a key that is not there is an error, as this file would have gone stale."
    for key, value in small.items():
        assert key in params, f"tests/smoke_params.py sets `{key}`, which params.yaml does not have"
        params[key] = merged(params[key], value) if isinstance(value, dict) else value
    return params


def shrink(folder):
    path = Path(folder)/"params.yaml"
    path.write_text(yaml.safe_dump(merged(yaml.safe_load(path.read_text()), SMALL), sort_keys=False))


if __name__ == "__main__": shrink(sys.argv[1])
