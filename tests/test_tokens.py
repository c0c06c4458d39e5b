"What the token cache promises: the same training as through the networks, nothing stale, nothing half, the rest kept."
import json, os, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest, torch
from conftest import ROOT
from test_models import PARAMS
from cad_nb.core import SAMPLES_PER_FRAME, ParamsError, hash_of, read_params, seed_all, typed
from cad_nb.data.clips import BatchParams, Clips, eval_batches, train_batches
from cad_nb.data.manifest import as_manifest
from cad_nb.data.tokens import Recipe, StaleTokens, TokenBatch, TokenClips, TokensParams, make_tokens, no_tokens, plan_tokens
from cad_nb.judge.evaluate import predict
from cad_nb.learn import TrainParams, optimizer_of, step
from cad_nb.models.build import build, check_frozen, frozen_features, networks_mark
from cad_nb.models.cad import VARIANTS, PretrainedParams
t = pytest.importorskip("transformers", reason="the extra `pretrained` is not installed")
from test_models_pretrained import TRAIN, saved

READ = read_params(ROOT/"params.yaml")
BATCHES = replace(typed(READ["batches"], BatchParams, "batches"), prefetch=0)
STILL = replace(BATCHES, flip=0., brightness=0., contrast=0., blur=0., noise=0., gain_db=0., tilt=0., audio_noise=0., sharp=0)   # as stored, but modalities are hidden
TOKENS = TokensParams(cached=True, views=3, store="float16", precision="float32", batch_size=5)


def write_clips(folder, n=12, K=3, P=16, T=16, Q=16):
    "Two corpora as `prepare` lays them out, the second without sound."
    from safetensors.numpy import save_file
    rng, rows = np.random.default_rng(0), []
    for corpus, sound in (("talk", 1), ("mute", 0)):
        (folder/corpus).mkdir(parents=True)
        for s in range(2):
            ids, path = [f"{corpus}/{s}_{i}.mp4" for i in range(n)], folder/corpus/f"shard-{s:05}.safetensors"
            tone = (9000*np.sin(np.arange(T*SAMPLES_PER_FRAME)*rng.uniform(.02, .3, (n, 1)))*rng.uniform(.2, 1, (n, 1))).astype(np.int16)
            save_file(dict(face=rng.integers(0, 256, (n,K,P,P,3), np.uint8), mouth=rng.integers(0, 256, (n,T,Q,Q), np.uint8), audio=tone*np.int16(sound), has_video=np.ones(n, np.uint8), has_audio=np.full(n, sound, np.uint8)), path)
            path.with_suffix(".json").write_text(json.dumps(dict(data=hash_of(path), windows=[dict(id=id, start_frame=1) for id in ids])))
            rows += [dict(id=id, corpus=corpus, path=id[5:], method=("real", "swap", "voice")[i % 3], status="ok", split=("train", "train", "train", "val", "test")[i % 5], y=int(i % 3 > 0), y_video=int(i % 3 == 1),
                          y_audio=int(i % 3 == 2) if sound else None, y_sync=0 if sound else None) for i, id in enumerate(ids)]
    return as_manifest(rows)


def model(saved, rank=0, video="clip", audio="whisper", variant="cad"):
    seed_all(1)
    return build(replace(PARAMS, encoder="pretrained", pretrained=PretrainedParams(str(saved/video), str(saved/audio), rank, False), **VARIANTS[variant]), 16, 16)


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    return folder, write_clips(folder)


def recipe_of(net, params=TOKENS, batches=BATCHES, seed=0): return Recipe(networks_mark(net), params, batches, seed)

def encode(net, params=TOKENS): return lambda b: frozen_features(net, b, params.precision)

def make(features, out, net, params=TOKENS, **how):
    recipe = recipe_of(net, params, **how)
    return recipe, make_tokens(Clips(*features), out, encode(net, params), recipe, progress=False)

def contents(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def made(saved, features, tmp_path_factory):
    out, net = tmp_path_factory.mktemp("tokens"), model(saved)
    recipe, n = make(features, out, net)
    assert n == 12                                    # four shards of clips in three views
    return out, recipe, net


# the same training --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("video, audio", [("clip", "whisper"), ("dinov2", "wav2vec2"), ("siglip", "ast")])
@pytest.mark.parametrize("store, tolerance", [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_training_on_tokens_is_training_through_the_networks(saved, features, tmp_path, video, audio, store, tolerance):
    "Unvaried clips, hidden modalities, a corpus without sound: each loss of each step, and the logits after them."
    params = replace(TOKENS, views=1, store=store)
    recipe, _ = make(features, tmp_path, model(saved, video=video, audio=audio), params, batches=STILL)
    runs = []
    for wrap in (lambda c: c, lambda c: TokenClips(c, tmp_path, recipe)):
        net = model(saved, video=video, audio=audio)
        optimizer = optimizer_of(net, TRAIN)
        for group in optimizer.param_groups: group["lr"] = 1e-3
        losses = [step(net.train(), b, optimizer, TRAIN) for epoch in range(2) for b in train_batches(wrap(Clips(*features, "train")), 8, 0, epoch, STILL)]
        table, curves = predict(net.eval(), eval_batches(wrap(Clips(*features, "test")), 7), precision="float32")
        runs.append((losses, table, curves))
    (through, a, curve_a), (kept, b, curve_b) = runs
    assert len(through) == 8 and through[0]["loss"] != through[-1]["loss"]
    for x, y in zip(through, kept, strict=True): assert x.keys() == y.keys() and all(abs(x[k] - y[k]) < tolerance*(1 + abs(x[k])) for k in x), (x, y)
    logits = [c for c in a if c.startswith("logit")]
    assert (a[logits].isna() == b[logits].isna()).all(axis=None) and a.logit_audio.isna().any()
    assert np.nanmax(np.abs(a[logits] - b[logits])) < 5*tolerance and np.nanmax(np.abs(curve_a - curve_b)) < 5*tolerance


def test_the_networks_are_not_asked_again(made, features):
    out, recipe, net = made
    calls = []
    hooks = [n.register_forward_hook(lambda *_: calls.append(1)) for n in (net.video.net, net.audio.net)]
    clips = TokenClips(Clips(*features, "train"), out, recipe)
    try:
        step(net.train(), next(train_batches(clips, 8, 0, 0, BATCHES)), optimizer_of(net, TRAIN), TRAIN)
        assert not calls
        net.read(next(train_batches(Clips(*features, "train"), 8, 0, 0, BATCHES)))
        assert len(calls) == 2
    finally:
        for hook in hooks: hook.remove()


def test_what_learns_still_learns(saved, made, features):
    out, recipe, _ = made
    net = model(saved)
    before = {k: v.clone() for k, v in net.named_parameters()}
    optimizer = optimizer_of(net, TRAIN)
    for _ in range(2): step(net.train(), next(train_batches(TokenClips(Clips(*features, "train"), out, recipe), 8, 0, 0, replace(BATCHES, drop_video=.4, drop_audio=.4))), optimizer, TRAIN)
    still = {k for k, v in net.named_parameters() if torch.equal(v, before[k])}
    assert still and not [k for k in still if ".net.net." not in k]


# what is stored ------------------------------------------------------------------------------------------------------

def test_view_0_is_what_the_networks_give(made, features):
    out, recipe, net = made
    for split in ("val", "test", "train"):
        clips = Clips(*features, split)
        tokens = TokenClips(clips, out, recipe)
        for b, k in zip(eval_batches(clips, 9), eval_batches(tokens, 9), strict=True):
            whole = frozen_features(net, b, "float32")
            assert torch.equal(k.idx, b.idx) and torch.equal(k.mouth, b.mouth) and torch.equal(k.audio, b.audio) and k.face.shape[1] == 0
            for name in ("seen", "heard"): torch.testing.assert_close(getattr(k, name).float(), whole[name], atol=2e-3, rtol=2e-3)
    k = tokens.batch(range(len(tokens)))
    assert k.has_audio.any() and not k.has_audio.all() and not k.heard[~k.has_audio].any() and k.heard[k.has_audio].flatten(1).any(1).all()


def test_views_are_varied_and_for_training_alone(made, features):
    out, recipe, _ = made
    clips = Clips(*features, "train")
    tokens, rows = TokenClips(clips, out, recipe), np.arange(len(clips))
    views = torch.stack([tokens.with_tokens(clips.batch(rows, faces=False), np.full(len(rows), v)).seen.float() for v in range(3)])
    far = lambda a, b: (views[a] - views[b]).abs().amax((1, 2))
    assert (far(0, 1) > .01).all() and (far(0, 2) > .01).all() and (far(1, 2) > .01).all()
    held_out = Clips(*features, "test")
    stored = {tuple(json.loads(f.read_text())["rows"]) for f in out.glob("talk/view-1/*.json")}
    assert TokenClips(held_out, out, recipe).views == 1 and not set(held_out.at[:, 1]) & {r for rows in stored for r in rows}


def test_a_batch_of_tokens_is_always_the_same(made, features):
    out, recipe, _ = made
    clips = TokenClips(Clips(*features, "train"), out, recipe)
    a, b = (list(train_batches(clips, 6, 0, 2, p)) for p in (BATCHES, replace(BATCHES, prefetch=2)))
    assert isinstance(a[0], TokenBatch) and a[0].seen.shape[1] == BATCHES.sharp and len(a) == len(clips)//6
    for x, y in zip(a, b, strict=True): assert all(torch.equal(v.nan_to_num(-7), getattr(y, k).nan_to_num(-7)) for k, v in vars(x).items())
    other = next(train_batches(clips, 6, 0, 3, BATCHES))
    assert not torch.equal(other.seen, a[0].seen)


def test_tokens_of_a_batch_can_be_moved_and_cut(made, features):
    out, recipe, _ = made
    b = TokenClips(Clips(*features, "val"), out, recipe).batch([0, 1, 2])
    assert isinstance(b.to("cpu"), TokenBatch) and torch.equal(b.map(lambda x: x[1:]).seen, b.seen[1:])


# stale, half and killed ----------------------------------------------------------------------------------------------

def test_a_second_run_does_nothing(made, features):
    out, recipe, net = made
    before = {p: p.stat().st_mtime_ns for p in out.rglob("shard-*")}
    assert make(features, out, net)[1] == 0 and {p: p.stat().st_mtime_ns for p in out.rglob("shard-*")} == before


def test_other_makers_are_refused_and_made_anew(saved, features, tmp_path):
    net = model(saved)
    recipe, _ = make(features, tmp_path, net, replace(TOKENS, views=2))
    train = lambda recipe: TokenClips(Clips(*features, "train"), tmp_path, recipe)
    train(recipe)
    other_weights = model(saved, audio="wav2vec2")
    fed = model(saved); fed.video.look.mean += .1
    for changed in (recipe_of(other_weights, recipe.params), recipe_of(fed, recipe.params), replace(recipe, seed=1), replace(recipe, batches=replace(BATCHES, blur=1.)),
                    replace(recipe, params=replace(recipe.params, store="bfloat16")), replace(recipe, params=replace(recipe.params, precision="bfloat16"))):
        with pytest.raises(StaleTokens, match="run `cad stage tokens` again"): train(changed)
    with pytest.raises(StaleTokens, match="there are no tokens"): train(replace(recipe, params=replace(recipe.params, views=3)))
    assert make(features, tmp_path, net, replace(TOKENS, views=3))[1] == 4, "more views leave those that are there"
    assert make(features, tmp_path, fed, replace(TOKENS, views=3))[1] == 12
    train(recipe_of(fed, replace(TOKENS, views=3)))
    assert make(features, tmp_path, fed, replace(TOKENS, views=1))[1] == 0 and not list(tmp_path.glob("*/view-1"))


def test_other_clips_are_other_tokens(saved, tmp_path):
    folder, out, net = tmp_path/"features", tmp_path/"tokens", model(saved)
    df = write_clips(folder)
    params = replace(TOKENS, views=1)
    recipe, _ = make((folder, df), out, net, params)
    path = folder/"talk"/"shard-00001.safetensors"
    data = bytearray(path.read_bytes()); data[-1] ^= 1; path.write_bytes(data)
    note = json.loads(path.with_suffix(".json").read_text()); path.with_suffix(".json").write_text(json.dumps(note | dict(data=hash_of(path))))
    with pytest.raises(StaleTokens, match="other clips"): TokenClips(Clips(folder, df, "test"), out, recipe)
    assert make((folder, df), out, net, params)[1] == 1
    fewer = df[df.split != "val"]                     # made for fewer clips than are asked for
    make((folder, fewer), out, net, params)
    with pytest.raises(StaleTokens, match="lacks clips of now, e.g. talk/0_3.mp4"): TokenClips(Clips(folder, df, "val"), out, recipe)
    TokenClips(Clips(folder, df, "test"), out, recipe)


def test_half_written_shards_do_not_count(made, features, tmp_path):
    out, recipe, net = made
    make(features, tmp_path, net)
    whole = contents(tmp_path)
    (tmp_path/"talk"/"view-0"/"shard-00000.json").unlink()
    short = tmp_path/"mute"/"view-2"/"shard-00001.safetensors"; short.write_bytes(short.read_bytes()[:-9])
    (tmp_path/"talk"/"view-1"/"shard-00001.json").write_text("{")
    (tmp_path/"talk"/"view-1"/".shard-00001.77.part.safetensors").write_bytes(b"half")
    for split in ("train", "val"):
        with pytest.raises(StaleTokens, match="there are no tokens"): TokenClips(Clips(*features, split), tmp_path, recipe)
    assert make(features, tmp_path, net)[1] == 3 and contents(tmp_path) == whole


def test_killed_and_started_again(saved, made, features, tmp_path):
    "Killed after a shard or more: the rest is made, the result is the same to the last byte."
    out, recipe, net = made
    folder, df = features
    df.to_pickle(tmp_path/"df.pkl")
    code = f"""
import sys, time; sys.path.insert(0, {str(ROOT/'tests')!r})
import pandas as pd
from pathlib import Path
from test_tokens import *
torch.set_num_threads(1)
net = model(Path({str(saved)!r}))
def slow(b): time.sleep(.3); return frozen_features(net, b, "float32")
make_tokens(Clips({str(folder)!r}, pd.read_pickle({str(tmp_path/'df.pkl')!r})), {str(tmp_path/'out')!r}, slow, recipe_of(net), progress=False)
"""
    child = subprocess.Popen([sys.executable, "-c", code], env=dict(os.environ, PYTHONPATH=str(ROOT)))
    shards, began = lambda: list((tmp_path/"out").glob("*/view-*/*.json")), time.monotonic()
    while len(shards()) < 2:
        assert child.poll() is None and time.monotonic() - began < 120
        time.sleep(.02)
    child.send_signal(signal.SIGKILL); child.wait()
    n = len(shards())
    assert 2 <= n < 12
    threads = torch.get_num_threads(); torch.set_num_threads(1)
    try: assert make(features, tmp_path/"out", net)[1] == 12 - n and make(features, tmp_path/"whole", net)[1] == 12
    finally: torch.set_num_threads(threads)
    assert contents(tmp_path/"out") == contents(tmp_path/"whole")


def test_numbers_that_do_not_fit_are_named(features, tmp_path):
    huge = lambda b: dict(seen=torch.full((len(b), 3, 2), 1e6), heard=torch.zeros(len(b), 1, 2))
    recipe = Recipe("huge", replace(TOKENS, views=1), BATCHES, 0)
    with pytest.raises(ValueError, match="talk/0_0.mp4.*tokens.store: bfloat16"): make_tokens(Clips(*features), tmp_path, huge, recipe, progress=False)
    assert make_tokens(Clips(*features), tmp_path, huge, replace(recipe, params=replace(recipe.params, store="bfloat16")), progress=False) == 4


def test_the_order_of_clips_in_a_manifest_does_not_matter(made, features):
    out, recipe, net = made
    folder, df = features
    mixed = TokenClips(Clips(folder, df.sample(frac=1, random_state=0), "val"), out, recipe)
    plain = TokenClips(Clips(folder, df, "val"), out, recipe)
    at = {id: i for i, id in enumerate(plain.rows.id)}
    assert torch.equal(mixed.batch(range(len(mixed))).seen, plain.batch([at[id] for id in mixed.rows.id]).seen)


# who may ---------------------------------------------------------------------------------------------------------------

def test_only_frozen_networks_have_a_cache(saved):
    with pytest.raises(ParamsError, match="adapters of rank 2.*lora_rank: 0"): networks_mark(model(saved, rank=2))
    with pytest.raises(ParamsError, match="learns as a whole"): check_frozen(PARAMS)
    assert networks_mark(model(saved)) == networks_mark(model(saved, variant="naive")) != networks_mark(model(saved, video="dinov2"))


def test_a_mark_does_not_depend_on_the_folder(saved, tmp_path):
    import shutil
    for name in ("clip", "whisper"): shutil.copytree(saved/name, tmp_path/name)
    assert networks_mark(model(tmp_path)) == networks_mark(model(saved))


def test_without_a_cache_a_note_is_left(made, features, tmp_path):
    out, recipe, net = made
    make(features, tmp_path, net)
    no_tokens(tmp_path, "because")
    assert contents(tmp_path) == {"tokens.json": b'{\n "cached": false,\n "why": "because"\n}'} and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(StaleTokens, match="set `tokens.cached: false`"): TokenClips(Clips(*features, "val"), tmp_path, recipe)


@pytest.mark.parametrize("key, value", [("views", 0), ("batch_size", 0), ("store", "float32"), ("precision", "float16")])
def test_wrong_params(key, value):
    with pytest.raises(ParamsError, match=f"tokens.{key}"): typed(READ["tokens"] | {key: value}, TokensParams, "tokens")


def test_pseudo_fakes_have_no_tokens(features, made):
    out, recipe, _ = made
    from cad_nb.data.pseudo import Forged, PseudoParams
    forged = Forged(Clips(*features, "train"), typed(READ["pseudo"], PseudoParams, "pseudo"), 0)
    with pytest.raises(ParamsError, match="train.fakes: forged"): TokenClips(forged, out, recipe)
