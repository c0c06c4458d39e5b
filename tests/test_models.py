"What the model promises: who gets which gradient, what missing modalities cost, what unknown labels do."
from dataclasses import replace
from types import SimpleNamespace
import pytest, torch
from cad_nb.core import SAMPLES_PER_FRAME, seed_all
from cad_nb.models.align import Alignment, agreement, offset_curve, similarity, sync_nce
from cad_nb.models.build import build
from cad_nb.models.cad import AUDIO, EVIDENCE, FAKE, SYNC, VARIANTS, VIDEO, ModelParams, PretrainedParams, loss_parts, targets, verdict_label, views
from cad_nb.models.distill import logit_loss, spread, token_loss
from cad_nb.models.encoders import BANDS, CompactAudio, CompactVideo, log_spectrogram

PARAMS = ModelParams(encoder="compact", pretrained=PretrainedParams("", "", 0, False), align=True, distill="full", modalities=["video", "audio", "sync"], dim=16, layers=1, heads=2, dropout=0., reach=5, window=3, temperature=2.)
NAN = float("nan")

def clips(n=4, T=16, K=2, P=16, Q=16, seed=0):
    g = torch.Generator().manual_seed(seed)
    label = lambda *v: torch.tensor(v, dtype=torch.float)
    return SimpleNamespace(face=torch.randint(0, 255, (n, K, P, P, 3), dtype=torch.uint8, generator=g), mouth=torch.randint(0, 255, (n, T, Q, Q), dtype=torch.uint8, generator=g), audio=torch.randn(n, T*SAMPLES_PER_FRAME, generator=g)*.1,
        y=label(0, 1, 1, 1), y_video=label(0, 1, 0, 0), y_audio=label(0, 0, 1, 0), y_sync=label(0, 0, NAN, 1), has_video=torch.ones(n).bool(), has_audio=torch.ones(n).bool(), idx=torch.arange(n))

def model(variant="cad"):
    seed_all(0)
    return build(replace(PARAMS, **VARIANTS[variant]), 16, 16)

@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_learns_and_says_what_it_knows(variant):
    m, b = model(variant), clips()
    verdict = m.read(b)
    assert verdict.logits.shape == (4, 4)
    assert (~verdict.logits.isnan()).all(0).nonzero().ravel().tolist() == m.knows
    loss = sum(loss_parts(m, verdict, b).values())
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(p.grad).all() for p in m.parameters() if p.grad is not None)

def test_variants_differ_in_switches_alone():
    cad, naive = model("cad"), model("naive")
    for part in ("video", "audio", "fusion", "head"):
        a, b = getattr(cad, part).state_dict(), getattr(naive, part).state_dict()
        assert {k: v.shape for k, v in a.items()} == {k: v.shape for k, v in b.items()}

def test_teachers_never_see_the_fusions_gradient():
    m, b = model(), clips()
    parts = loss_parts(m, m.train().read(b), b)
    (parts["fake"] + parts["labels"] + parts["token"] + parts["logit"] + parts["nce"] + parts["agree"]).backward()
    for name in ("video.face", "video.face_out", "audio.trace", "audio.trace_out", "teachers"):
        assert all(p.grad is None or not p.grad.any() for p in m.get_submodule(name).parameters()), name
    assert m.video.mouth[0].conv.weight.grad.any() and m.predict["video"][0].weight.grad.any()

def test_in_evaluation_a_logit_reaches_every_input():
    m, b = model().eval(), clips()
    v = views(b)
    inputs = [x.requires_grad_() for x in (v.face, v.mouth, v.spec)]
    m(*inputs, v.has_video, v.has_audio).logits[:, FAKE].sum().backward()
    assert all(x.grad.any() for x in inputs)

def test_a_missing_modality_may_hold_anything():
    m, b = model().eval(), clips()
    b.has_audio = torch.zeros(4).bool()
    first = m.read(b).logits
    b.audio = torch.randn_like(b.audio)
    assert torch.equal(first.nan_to_num(), m.read(b).logits.nan_to_num())
    assert first[:, [AUDIO, SYNC]].isnan().all() and not first[:, [FAKE, VIDEO]].isnan().any()

def test_a_clip_does_not_depend_on_its_batch():
    m, b = model().eval(), clips()
    alone = torch.cat([m.read(SimpleNamespace(**{k: v[i:i+1] for k, v in vars(b).items()})).logits for i in range(4)])
    torch.testing.assert_close(alone, m.read(b).logits, equal_nan=True, rtol=1e-4, atol=1e-4)

def test_targets_follow_what_can_be_seen_and_heard():
    b = clips()
    b.has_audio[2], b.has_video[1] = False, False
    y = targets(b)
    assert y[2, FAKE] == 0 and y[2, AUDIO].isnan() and y[2, SYNC].isnan()   # cloned voice, unheard
    assert y[1, FAKE] == 0 and y[1, VIDEO].isnan()                          # swapped face, unseen
    assert y[3].tolist() == [1, 0, 0, 1]

@pytest.mark.parametrize("variant, asked", [("video_only", "y_video"), ("audio_only", "y_audio"), ("sync_only", "y"), ("naive", "y"), ("cad", "y")])
def test_a_detector_of_one_modality_learns_its_own_label(variant, asked):
    "A picture says nothing of a cloned voice: with the label of the whole clip, a unimodal rival would be taught to guess."
    m, b = model(variant), clips()
    assert verdict_label(m.params) == asked
    said = m.read(b)
    by_hand = torch.nn.functional.binary_cross_entropy_with_logits(said.logits[:, FAKE], getattr(b, asked))
    assert torch.isclose(loss_parts(m, said, b)["fake"], by_hand)

def test_unknown_labels_teach_nothing():
    m, b = model(), clips()
    for k in ("y", "y_video", "y_audio", "y_sync"): setattr(b, k, torch.full((4,), NAN))
    parts = loss_parts(m, m.read(b), b)
    assert all(parts[k] == 0 for k in ("fake", "teacher", "labels", "nce", "agree"))

@pytest.mark.parametrize("shift", [-4, -1, 0, 2, 5])
def test_the_curve_peaks_where_the_speech_was_moved_to(shift):
    g = torch.Generator().manual_seed(0)
    track = torch.nn.functional.normalize(torch.randn(1, 40, 16, generator=g), dim=-1)
    assert offset_curve(track[:, 10:30], track[:, 10 - shift:30 - shift], 5).argmax().item() - 5 == shift

def test_nce_by_hand():
    eye = torch.eye(3)[None]
    expected = -torch.log(torch.exp(torch.tensor(2.)) / (torch.exp(torch.tensor(2.)) + 2))
    torch.testing.assert_close(sync_nce(eye, eye, .5), expected)
    assert agreement(similarity(eye, eye), .5, 1) == 0

def test_a_clip_in_sync_is_no_negative_of_itself():
    "Two equal clips in one batch must not be told apart: the loss is log 2 higher at least, not infinite."
    eye = torch.eye(3)[None]
    assert torch.isfinite(sync_nce(eye.expand(2, -1, -1), eye.expand(2, -1, -1), .05))

def test_distilled_losses_stop_at_the_teacher_and_skip_the_missing():
    s, t = torch.randn(4, requires_grad=True), torch.randn(4, requires_grad=True)
    known = torch.tensor([True, True, False, False])
    logit_loss(s, t, known).backward()
    assert t.grad is None and s.grad[:2].all() and not s.grad[2:].any()
    assert token_loss(torch.randn(2, 8), torch.randn(2, 8), torch.zeros(2).bool()) == 0

def test_collapse_is_seen():
    assert spread(torch.randn(64, 32)) > .8 and spread(torch.ones(64, 32)) == 0

def test_spectrogram_has_no_level_and_survives_silence():
    x = torch.randn(2, 8*SAMPLES_PER_FRAME)
    torch.testing.assert_close(log_spectrogram(x), log_spectrogram(.1*x), atol=2e-2, rtol=0)
    silent = log_spectrogram(torch.zeros(1, 8*SAMPLES_PER_FRAME))
    assert silent.shape == (1, BANDS, 32) and torch.isfinite(silent).all()

def test_encoders_shapes():
    assert CompactVideo(16, 32, 16).tokens(torch.rand(2, 3, 3, 32, 32)).shape == (2, 3, 16)
    assert CompactVideo(16, 32, 16).sync(torch.rand(2, 7, 16, 16)).shape == (2, 7, 16)
    assert CompactAudio(16).sync(torch.randn(2, BANDS, 28)).shape == (2, 7, 16)

@pytest.mark.parametrize("key, value", [("distill", "some"), ("encoder", "huge"), ("modalities", ["smell"]), ("modalities", [])])
def test_unknown_switches_are_refused(key, value):
    with pytest.raises(ValueError, match=f"model.{key}"): replace(PARAMS, **{key: value})
