"What pretrained encoders promise: any network by its name, its own preprocessing to 1e-4, frozen weights that never move, and errors that say where to get weights."
import json
from copy import deepcopy
from dataclasses import replace
import numpy as np, pytest, torch
from conftest import ROOT
from test_models import PARAMS, clips
from cad_nb.core import SAMPLES_PER_FRAME, read_params, seed_all, typed
from cad_nb.learn import CheckpointError, TrainParams, follow, load_checkpoint, load_state, optimizer_of, save_checkpoint, save_state, step
from cad_nb.models.build import build, count_weights
from cad_nb.models.cad import FAKE, VARIANTS, PretrainedParams
from cad_nb.models.encoders import CompactAudio, CompactVideo
from cad_nb.models.pretrained import Backbone, Pictures, PretrainedAudio, PretrainedVideo, WeightsError, front_end, load_network
t = pytest.importorskip("transformers", reason="the extra `pretrained` is not installed")
for package in ("peft", "torchvision"): pytest.importorskip(package, reason="the extras `pretrained` and `dev` are not installed")   # the processors of `transformers` resize with torchvision

TINY = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
SEEN = TINY | dict(image_size=32, patch_size=8)
TEXT = TINY | dict(vocab_size=9, bos_token_id=1, eos_token_id=2, pad_token_id=0)
HEARD = TINY | dict(conv_dim=(16,)*7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2)
CUT = dict(size=dict(shortest_edge=36), crop_size=dict(height=32, width=32))
NETWORKS = dict(
    clip=lambda: (t.CLIPModel(t.CLIPConfig(vision_config=SEEN, text_config=TEXT)), t.CLIPImageProcessor(**CUT)),
    siglip=lambda: (t.SiglipModel(t.SiglipConfig(vision_config=SEEN, text_config=TEXT)), t.SiglipImageProcessor(size=dict(height=32, width=32))),
    dinov2=lambda: (t.Dinov2Model(t.Dinov2Config(**TINY, image_size=40, patch_size=8)), t.BitImageProcessor(**CUT)),   # trained larger than it is used, as the real one
    dinov3=lambda: (t.DINOv3ViTModel(t.DINOv3ViTConfig(**SEEN)), t.DINOv3ViTImageProcessor(size=dict(height=32, width=32))),
    whisper=lambda: (t.WhisperModel(t.WhisperConfig(d_model=32, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=9, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)), t.WhisperFeatureExtractor()),
    wav2vec2=lambda: (t.Wav2Vec2Model(t.Wav2Vec2Config(**HEARD)), t.Wav2Vec2FeatureExtractor()),
    hubert=lambda: (t.HubertModel(t.HubertConfig(**HEARD)), t.Wav2Vec2FeatureExtractor()),
    wavlm=lambda: (t.WavLMModel(t.WavLMConfig(**HEARD)), t.Wav2Vec2FeatureExtractor(do_normalize=False)),
    ast=lambda: (t.ASTModel(t.ASTConfig(**TINY, max_length=256)), t.ASTFeatureExtractor(max_length=256)),
)
VISION, SOUND = ("clip", "siglip", "dinov2", "dinov3"), ("whisper", "wav2vec2", "hubert", "wavlm", "ast")
TRAIN = replace(typed(read_params(ROOT/"params.yaml")["train"], TrainParams, "train"), lr=1e-2, precision="float32")

@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    "A folder of checkpoints as people have them, of random weights."
    folder = tmp_path_factory.mktemp("weights")
    t.utils.logging.disable_progress_bar()
    for name, make in NETWORKS.items():
        seed_all(0)
        for part in make(): part.save_pretrained(folder/name)
    return folder

def model(saved, video="clip", audio="whisper", variant="cad", rank=2):
    seed_all(1)
    return build(replace(PARAMS, encoder="pretrained", pretrained=PretrainedParams(str(saved/video), str(saved/audio), rank, False), **VARIANTS[variant]), 16, 16)

# --- any network by its folder alone

@pytest.mark.parametrize("video, audio", [("clip", "whisper"), ("siglip", "wav2vec2"), ("dinov2", "hubert"), ("dinov3", "wavlm"), ("clip", "ast")])
def test_any_two_networks_make_a_detector_that_learns(saved, video, audio):
    m, b = model(saved, video, audio), clips()
    frozen = {k: v.clone() for k, v in m.named_parameters() if not v.requires_grad}
    adapters = {k: v.clone() for k, v in m.named_parameters() if "lora_" in k}
    optimizer = optimizer_of(m, TRAIN)
    for precision in ("float32", "bfloat16"): assert np.isfinite(step(m.train(), b, optimizer, replace(TRAIN, precision=precision))["loss"])
    now = dict(m.named_parameters())
    assert frozen and all(torch.equal(now[k], v) and now[k].grad is None for k, v in frozen.items())
    still = [k for k, v in adapters.items() if torch.equal(now[k], v)]
    assert adapters and not still, f"no gradient reached {still}"

@pytest.mark.parametrize("name", VISION)
def test_shapes_of_pictures(saved, name):
    net, own = load_network(str(saved/name), "video")
    e = PretrainedVideo(net, own, CompactVideo(16, 24, 16), 16, 0)
    assert e.tokens(torch.rand(2, 3, 3, 24, 24)).shape == (2, 3, 16) and e.sync(torch.rand(2, 7, 16, 16)).shape == (2, 7, 16)

@pytest.mark.parametrize("name", SOUND)
@pytest.mark.parametrize("T", [36, 17])
def test_shapes_and_clock_of_sound(saved, name, T):
    net, own = load_network(str(saved/name), "audio")
    e = PretrainedAudio(net, own, CompactAudio(16), 16, 0)
    view = e.front(torch.randn(2, T*SAMPLES_PER_FRAME)*.1)
    assert e.sync(view).shape == (2, T, 16) and e.tokens(view).shape == (2, -(-T//4), 16)

def test_a_whisper_on_half_a_minute_is_the_whisper_of_transformers(saved):
    net, own = load_network(str(saved/"whisper"), "audio")
    mel = torch.randn(1, 80, 3000)
    with torch.no_grad():
        theirs = net(mel).last_hidden_state
        front, backbone = front_end(own), Backbone(net, 0)
        short = front.states(backbone, mel[..., :144])
        torch.testing.assert_close(front.states(backbone, mel), theirs)
    assert short.shape == (1, 72, 32)

# --- their own preprocessing

@pytest.mark.parametrize("name", VISION)
@pytest.mark.parametrize("side", [96, 24])
def test_pictures_as_transformers_makes_them(saved, name, side):
    "Shrunk and enlarged, given the same floats."
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    theirs = t.AutoImageProcessor.from_pretrained(saved/name, local_files_only=True)
    torch.testing.assert_close(Pictures(load_network(str(saved/name), "video")[1])(x), theirs(list(x), do_rescale=False, return_tensors="pt").pixel_values, atol=1e-4, rtol=0)

@pytest.mark.parametrize("resample, mode", [(2, "BILINEAR"), (3, "BICUBIC")])
@pytest.mark.parametrize("side", [96, 24])
def test_pillow_resizes_alike_where_it_does_not_round(resample, mode, side):
    "The filters of the slow processors, on floats of one channel."
    from PIL import Image
    x = np.random.default_rng(0).random((side, side), np.float32)
    theirs = np.asarray(Image.fromarray(x).resize((36, 36), getattr(Image.Resampling, mode)))
    ours = Pictures(dict(size=36, image_mean=[0.]*3, image_std=[1.]*3, resample=resample))(torch.from_numpy(x).expand(1, 3, -1, -1))
    torch.testing.assert_close(ours[0, 0], torch.tensor(theirs), atol=1e-4, rtol=0)

@pytest.mark.parametrize("backend", ["pil", "torchvision"])
@pytest.mark.parametrize("side", [96, 32, 24])
def test_pictures_of_bytes_differ_by_their_rounding(saved, backend, side):
    "Both kinds of processor of `transformers` round to bytes after resizing, the one on Pillow after each direction; where nothing is resized nothing differs."
    same = dict(size=dict(shortest_edge=side), crop_size=dict(height=24, width=24)) if side == 32 else {}
    processor = t.AutoImageProcessor.from_pretrained(saved/"clip", backend=backend, local_files_only=True, **same)
    bytes = np.random.default_rng(0).integers(64, 192, (side, side, 3), np.uint8)    # the cubic stays within black and white
    theirs = processor(bytes, return_tensors="pt").pixel_values
    ours = Pictures(processor.to_dict())(torch.from_numpy(bytes).permute(2, 0, 1)[None] / 255)
    grey = ((ours - theirs).abs() * torch.tensor(processor.image_std).view(3, 1, 1) * 255).max()
    assert grey < (1e-2 if side == 32 else 1.51), f"{grey} grey levels"

def test_old_settings_are_understood():
    "`size: 224` meant the shorter side where a crop follows, and both sides where none does."
    old = dict(image_mean=[.5]*3, image_std=[.5]*3, resample=2)
    assert Pictures(old | dict(size=36, crop_size=32, do_center_crop=True))(torch.rand(1, 3, 48, 96)).shape[-2:] == (32, 32)
    assert Pictures(old | dict(size=36))(torch.rand(1, 3, 48, 96)).shape[-2:] == (36, 36)
    with pytest.raises(WeightsError, match="needs size"): Pictures(old | dict(size=dict(longest_edge=36)))

@pytest.mark.parametrize("name", SOUND)
def test_sound_as_transformers_makes_it(saved, name):
    own = load_network(str(saved/name), "audio")[1]
    wave = torch.randn(2, 36*SAMPLES_PER_FRAME, generator=torch.Generator().manual_seed(0)) * torch.tensor([[.1], [.01]])
    wave[1, 8000:12000] = 0
    ours = front_end(own)(wave)
    for one, view in zip(wave.numpy(), ours):
        theirs = own(one, sampling_rate=16000, return_tensors="np", **dict(padding="do_not_pad") if name == "whisper" else {})
        theirs = torch.tensor(np.asarray(theirs[own.model_input_names[0]])[0])
        if name == "ast": theirs = theirs[:view.shape[-1]].T     # without the padding, which `states` adds
        torch.testing.assert_close(view, theirs.view_as(view), atol=1e-4, rtol=0)

def test_an_ast_gets_its_padding(saved):
    net, own = load_network(str(saved/"ast"), "audio")
    wave, seen = torch.randn(1, 36*SAMPLES_PER_FRAME)*.1, {}
    net.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)
    front = front_end(own)
    front.states(Backbone(net, 0), front(wave))
    torch.testing.assert_close(seen["input_values"], torch.tensor(np.asarray(own(wave[0].numpy(), sampling_rate=16000)["input_values"])), atol=1e-4, rtol=0)

@pytest.mark.parametrize("audio", ["whisper", "wav2vec2", "ast"])
def test_silence_is_no_number_trouble(saved, audio):
    own = load_network(str(saved/audio), "audio")[1]
    assert front_end(own)(torch.zeros(1, 8*SAMPLES_PER_FRAME)).isfinite().all()

# --- who learns

def test_trainable_weights_are_counted(saved):
    m = model(saved)
    rows = {r["part"]: r for r in count_weights(m)}
    adapters = sum(p.numel() for k, p in m.named_parameters() if "lora_" in k)
    assert adapters == 2 * (2 * 2 * 2 * 2 * 32)                 # encoders, layers, queries and values, A and B, rank, width
    whole = t.CLIPVisionModel.from_pretrained(saved/"clip").num_parameters() + t.WhisperModel.from_pretrained(saved/"whisper").get_encoder().num_parameters()
    assert rows["video"]["frozen"] + rows["audio"]["frozen"] == whole and not any(r["frozen"] for k, r in rows.items() if k not in ("video", "audio"))
    assert all(p.requires_grad for k, p in m.named_parameters() if ".net.net." not in k)
    assert len({id(p) for g in optimizer_of(m, TRAIN).param_groups for p in g["params"]}) == sum(p.requires_grad for p in m.parameters())

def test_without_adapters_no_graph_is_built(saved):
    m, b = model(saved, rank=0), clips()
    v = m.train().views(b)
    assert not any("lora_" in k for k, _ in m.named_parameters())
    assert not m.video.features(v.face).requires_grad and not m.audio.features(v.spec).requires_grad

def test_synchrony_never_enters_a_pretrained_network(saved):
    m = model(saved)
    v = m.views(clips())
    (m.video.sync(v.mouth).sum() + m.audio.sync(v.spec).sum()).backward()
    assert all(p.grad is None for k, p in m.named_parameters() if ".net.net." in k)
    assert m.audio.pace.sync_in.weight.grad.any() and m.video.mouth.mouth[0].conv.weight.grad.any()

def test_a_network_that_does_not_learn_does_not_drop_out(saved):
    m, b = model(saved, audio="wav2vec2").train(), clips()
    v = m.views(b)
    assert m.training and torch.equal(m.audio.tokens(v.spec), m.audio.tokens(v.spec)) and torch.equal(m.video.tokens(v.face), m.video.tokens(v.face))

@pytest.mark.parametrize("video, audio", [("clip", "whisper"), ("dinov2", "wav2vec2"), ("siglip", "ast")])
def test_a_logit_reaches_every_input(saved, video, audio):
    m, b = model(saved, video, audio).eval(), clips()
    v = m.views(b)
    inputs = [x.requires_grad_() for x in (v.face, v.mouth, v.spec)]
    m(*inputs, v.has_video, v.has_audio).logits[:, FAKE].sum().backward()
    assert all(x.grad.any() and x.grad.isfinite().all() for x in inputs)

def test_samples_reach_the_view(saved):
    own = load_network(str(saved/"whisper"), "audio")[1]
    wave = (torch.randn(1, 8*SAMPLES_PER_FRAME)*.1).requires_grad_()
    front_end(own)(wave).sum().backward()
    assert wave.grad.any() and wave.grad.isfinite().all()

# --- kept and read again

def test_checkpoint_holds_what_was_learnt_and_names_the_rest(saved, tmp_path):
    from safetensors.torch import load_file
    m, b = model(saved), clips()
    step(m.train(), b, optimizer_of(m, TRAIN), TRAIN)
    save_checkpoint(tmp_path, m, dict(face_px=16, mouth_px=16))
    kept = load_file(tmp_path/"model.safetensors")
    assert {k for k in kept if ".net.net." in k} == {k for k, _ in m.named_parameters() if "lora_" in k}
    assert json.loads((tmp_path/"model.json").read_text())["model"]["pretrained"] == dict(video=str(saved/"clip"), audio=str(saved/"whisper"), lora_rank=2, download=False)
    again, _ = load_checkpoint(tmp_path)
    with torch.no_grad(): torch.testing.assert_close(again.read(b).logits, m.eval().read(b).logits, rtol=0, atol=0)

def test_a_resumed_run_and_averaged_weights(saved, tmp_path):
    m, b = model(saved), clips()
    average, optimizer = deepcopy(m), optimizer_of(m, TRAIN)
    step(m.train(), b, optimizer, TRAIN); follow(average, m, .5)
    fresh = model(saved).state_dict()
    moved = {k for k, v in average.state_dict().items() if not torch.equal(v, fresh[k])}
    assert any("lora_" in k for k in moved) and "video.net.weights_id" not in moved
    save_state(tmp_path/"state.safetensors", m, average, optimizer, dict(fingerprint="f"))
    other, other_average = model(saved), model(saved)
    assert load_state(tmp_path/"state.safetensors", "f", other, other_average, optimizer_of(other, TRAIN))
    for a, c in ((m, other), (average, other_average)): assert all(torch.equal(v, c.state_dict()[k]) for k, v in a.state_dict().items())
    with torch.no_grad(): assert torch.equal(average.eval().read(b).logits[:, FAKE], other_average.eval().read(b).logits[:, FAKE])

def test_a_copy_shares_what_is_frozen(saved):
    m, b = model(saved), clips()
    twin = deepcopy(m)
    mine, its = dict(m.named_parameters()), dict(twin.named_parameters())
    assert all((its[k] is p) == (not p.requires_grad) for k, p in mine.items()) and mine.keys() == its.keys()
    with torch.no_grad(): before = twin.eval().read(b).logits
    step(m.train(), b, optimizer_of(m, TRAIN), TRAIN)
    with torch.no_grad(): assert torch.equal(twin.read(b).logits, before)
    assert twin.load_state_dict(m.state_dict()) and torch.equal(its["video.out.1.weight"], mine["video.out.1.weight"])   # its hooks are its own
    del m; twin.state_dict()

def test_a_checkpoint_on_other_weights_is_refused(saved, tmp_path):
    m = model(saved)
    save_checkpoint(tmp_path/"c", m, dict(face_px=16, mouth_px=16))
    seed_all(5)
    net, own = NETWORKS["clip"]()
    for part in (net, own): part.save_pretrained(tmp_path/"clip")
    meta = json.loads((tmp_path/"c"/"model.json").read_text())
    meta["model"]["pretrained"]["video"] = str(tmp_path/"clip")
    (tmp_path/"c"/"model.json").write_text(json.dumps(meta))
    with pytest.raises(WeightsError, match="trained on other pretrained weights.*`video`"): load_checkpoint(tmp_path/"c")
    meta["model"]["pretrained"]["video"] = str(tmp_path/"moved away")
    (tmp_path/"c"/"model.json").write_text(json.dumps(meta))
    with pytest.raises(WeightsError, match="no folder.*licence: MIT"): load_checkpoint(tmp_path/"c")
    meta["model"]["encoder"] = "compact"
    (tmp_path/"c"/"model.json").write_text(json.dumps(meta))
    with pytest.raises(CheckpointError, match="cannot be loaded"): load_checkpoint(tmp_path/"c")

# --- errors

@pytest.mark.parametrize("name", ["/no/such/folder", "no/such", "not_here"])
def test_missing_weights_say_where_to_get_them(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match="hf download openai/whisper-small.*licence: Apache 2.0"): load_network(name, "audio")

def test_a_known_name_comes_with_its_own_licence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match="hf download facebook/dinov2-base.*licence: Apache 2.0"): load_network("facebook/dinov2-base", "video")

def test_a_hub_id_comes_from_the_local_cache_and_never_from_the_network(saved, tmp_path):
    "In a process of its own, as hub libraries look for their cache when they are imported; every connection is refused and noted."
    import os, shutil, subprocess, sys
    for name in ("clip", "whisper"):
        home = tmp_path/"hub"/f"models--somebody--{name}"
        shutil.copytree(saved/name, home/"snapshots"/"0123abcd"); (home/"refs").mkdir(); (home/"refs"/"main").write_text("0123abcd")
    code = """
import socket
asked = []
def refuse(*a, **k): asked.append(a); raise OSError("no network")
socket.socket.connect = socket.getaddrinfo = refuse
from cad_nb.models.pretrained import WeightsError, load_network
print(load_network("somebody/clip", "video")[0].config.hidden_size, load_network("somebody/whisper", "audio")[0].config.d_model)
try: load_network("somebody/else", "video")
except WeightsError as e: print("download: true" in str(e), len(asked))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={k: v for k, v in os.environ.items() if not k.startswith("HF_")} | dict(HF_HOME=str(tmp_path), PYTHONPATH=str(ROOT)))
    assert done.stdout.splitlines() == ["32 32", "True 0"], done.stderr[-2000:]

def test_a_folder_may_be_named_from_the_project(saved, tmp_path, monkeypatch):
    (tmp_path/"params.yaml").touch(); (tmp_path/"deep").mkdir(); (tmp_path/"clip").symlink_to(saved/"clip")
    monkeypatch.chdir(tmp_path/"deep")
    assert load_network("clip", "video")[0].config.hidden_size == 32

def test_pickles_are_not_read(saved, tmp_path):
    net = load_network(str(saved/"clip"), "video")[0]
    net.config.save_pretrained(tmp_path)
    torch.save(net.state_dict(), tmp_path/"pytorch_model.bin")
    with pytest.raises(WeightsError, match="pickle"): load_network(str(tmp_path), "video")

def copy_of(saved, name, to):
    to.mkdir()
    for f in (saved/name).iterdir(): (to/f.name).write_bytes(f.read_bytes())
    return to

def test_damaged_and_foreign_weights(saved, tmp_path):
    from safetensors.torch import load_file, save_file
    short, half, bare, text = (copy_of(saved, "clip", tmp_path/n) for n in ("short", "half", "bare", "text"))
    data = (short/"model.safetensors").read_bytes(); (short/"model.safetensors").write_bytes(data[:len(data)//2])
    with pytest.raises(WeightsError, match="cannot be loaded"): load_network(str(short), "video")
    save_file({k: v for k, v in load_file(half/"model.safetensors").items() if "layers.1" not in k}, half/"model.safetensors", dict(format="pt"))
    with pytest.raises(WeightsError, match="lacks .* weights"): load_network(str(half), "video")
    (bare/"preprocessor_config.json").unlink()
    with pytest.raises(WeightsError, match="image processor"): load_network(str(bare), "video")
    t.BertModel(t.BertConfig(**TINY, vocab_size=9)).save_pretrained(text)
    for kind in ("video", "audio"):
        with pytest.raises(WeightsError, match=f"input_ids: no encoder of {kind}"): load_network(str(text), kind)
    with pytest.raises(WeightsError, match="no encoder of audio"): load_network(str(saved/"clip"), "audio")

def test_code_that_comes_with_weights_is_not_run(saved, tmp_path):
    folder = copy_of(saved, "clip", tmp_path/"code")
    config = json.loads((folder/"config.json").read_text()) | dict(model_type="mine", auto_map=dict(AutoConfig="mine.Mine", AutoModel="mine.Net"))
    (folder/"config.json").write_text(json.dumps(config)); (folder/"mine.py").write_text(f"open({str(tmp_path/'ran')!r}, 'w')")
    with pytest.raises(WeightsError): load_network(str(folder), "video")
    assert not (tmp_path/"ran").exists()

def test_another_clock_or_front_end_is_refused():
    with pytest.raises(WeightsError, match="8000 Hz"): front_end(t.Wav2Vec2FeatureExtractor(sampling_rate=8000))
    with pytest.raises(WeightsError, match="known are"): front_end(t.ClapFeatureExtractor())
