"Attributions of models small enough to attribute by hand."
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from torch import nn
from captum.attr import IntegratedGradients
from cad_nb.core import stream
from cad_nb.explain import attribution as at


@pytest.fixture(autouse=True)
def one_thread():
    "Models this small are slower on many threads."
    n = torch.get_num_threads(); torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


def rand(*shape, key=0): return torch.tensor(stream(key, shape).random(shape), dtype=torch.float32)


class Small(nn.Module):
    "A nonlinear model of all three inputs, with an interaction between lips and speech."
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.face, self.mouth, self.spec = nn.Conv2d(3, 4, 3), nn.Linear(36, 4), nn.Linear(8, 4)
        self.out = nn.Linear(12, 4)

    def forward(self, face, mouth, spec, has_video, has_audio):
        f = torch.tanh(self.face(face.flatten(0, 1))).mean((2, 3)).view(*face.shape[:2], 4).mean(1)   # (B, 4)
        v = torch.tanh(self.mouth(mouth.flatten(2))).mean(1)
        a = torch.tanh(self.spec(spec.transpose(1, 2))).mean(1)
        f, v, a = f*has_video[:, None], v*has_video[:, None], a*has_audio[:, None]
        return SimpleNamespace(logits=self.out(torch.cat([f, a, v*a], 1))*10)


@pytest.fixture(scope="module")
def clips():
    inputs = rand(3, 2, 3, 8, 8), rand(3, 10, 6, 6), rand(3, 8, 20)
    return inputs, at.baselines_of(inputs, ("blurred", "still", "quiet")), (torch.ones(3), torch.tensor([1., 1., 0.]))


@pytest.fixture(scope="module")
def forward(): return at.head_forward(Small().eval(), "fake")


def test_linear_model_exactly():
    w = rand(2, 3, 4, 4, key="w"), rand(5, 7, key="v")
    f = lambda face, spec: (face*w[0]).flatten(1).sum(1) - (spec*w[1]).flatten(1).sum(1)
    x, b = (rand(2, 2, 3, 4, 4), rand(2, 5, 7)), (rand(2, 2, 3, 4, 4, key=1), rand(2, 5, 7, key=1))
    for method in ("integrated_gradients", "occlusion"):
        a = at.attribute(f, x, b, n_steps=2, method=method)
        if method == "integrated_gradients":
            torch.testing.assert_close(a.values[0], (x[0] - b[0])*w[0]); torch.testing.assert_close(a.values[1], -(x[1] - b[1])*w[1])
        torch.testing.assert_close(a.delta, torch.zeros(2), atol=1e-4, rtol=0)
        torch.testing.assert_close(a.logit, f(*x)); torch.testing.assert_close(a.logit_baseline, f(*b))


def test_relu_model_by_hand():
    # f = relu(2m + s - 1) - relu(-s), from (0, 0) to (1, 1): the first relu opens at a third of the path, so m gets 2*2/3 and s gets 2/3; the second stays shut
    f = lambda m, s: torch.relu(2*m.flatten() + s.flatten() - 1) - torch.relu(-s.flatten())
    x = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1)
    a = at.attribute(f, x, tuple(map(torch.zeros_like, x)), n_steps=300, internal_batch_size=50)
    torch.testing.assert_close(torch.cat([v.flatten() for v in a.values]), torch.tensor([4/3, 2/3]), atol=.02, rtol=0)
    assert abs(a.delta.item()) < .02 and a.logit.item() == 2


@pytest.mark.parametrize("head", at.HEADS)
def test_completeness_on_all_inputs_at_once(clips, head):
    inputs, base, args = clips
    a = at.attribute(at.head_forward(Small().eval(), head), inputs, base, args=args)
    assert a.delta.abs().max() < 1e-3 < (a.logit - a.logit_baseline).abs().max()
    torch.testing.assert_close(at.contributions(a.values).sum(1), a.logit - a.logit_baseline, atol=1e-3, rtol=0)
    torch.testing.assert_close(at.shares(a.values).sum(1), torch.ones(3))


def test_equals_captum_and_does_not_depend_on_the_pieces(clips, forward):
    inputs, base, args = clips
    theirs = IntegratedGradients(forward).attribute(inputs, base, additional_forward_args=args, n_steps=16)
    for batch in (1, 2, 5, 64):
        ours = at.attribute(forward, inputs, base, n_steps=16, internal_batch_size=batch, args=args)
        for o, t in zip(ours.values, theirs): torch.testing.assert_close(o, t, atol=1e-5, rtol=1e-4)


def test_a_silent_clip_owes_nothing_to_its_sound(clips, forward):
    inputs, base, args = clips
    for method in at.METHODS:
        a = at.attribute(forward, inputs, base, n_steps=4, method=method, args=args)
        assert a.values[2][2].abs().max() == 0 and a.values[1][2].abs().max() == 0 < a.values[0][2].abs().max()


def test_a_logit_that_the_model_does_not_give_has_no_attribution(clips, forward):
    inputs, base, (video, audio) = clips
    unsure = lambda *x: forward(*x).masked_fill(x[-1] == 0, torch.nan)              # says nothing about a clip without sound
    for method in at.METHODS:
        a, whole = (at.attribute(f, inputs, base, n_steps=4, method=method, args=(video > 0, audio > 0)) for f in (unsure, lambda f, m, s, v, a: forward(f, m, s, v.float(), a.float())))
        assert all(v[2].isnan().all() for v in a.values) and at.shares(a.values)[2].isnan().all() and a.delta.isnan().tolist() == [False, False, True]
        for v, w in zip(a.values, whole.values): torch.testing.assert_close(v[:2], w[:2])


@pytest.mark.parametrize("method", at.METHODS)
def test_an_ignored_input_gets_nothing(clips, method):
    inputs, base, _ = clips
    a = at.attribute(lambda face, mouth, spec: face.flatten(1).sum(1), inputs, base, n_steps=2, method=method)
    assert a.values[0].abs().max() > 0 == a.values[1].abs().max() == a.values[2].abs().max()


def test_memory_is_bounded(clips):
    inputs, base, args = clips
    largest = [0]
    model = Small().eval()
    def spy(*x): largest[0] = max(largest[0], len(x[0])); return at.head_forward(model)(*x)
    for method in at.METHODS:
        at.attribute(spy, inputs, base, n_steps=9, internal_batch_size=4, method=method, args=args)
        assert largest[0] <= 4, method


def test_random_points_are_seeded_and_leave_the_generators_alone(clips, forward):
    inputs, base, args = clips
    torch.manual_seed(5); np.random.seed(5); want = torch.rand(1), np.random.rand()
    torch.manual_seed(5); np.random.seed(5)
    one, two, other = (at.attribute(forward, inputs, base, n_steps=4, method="gradient_shap", args=args, seed=s).values[0] for s in (0, 0, 1))
    assert (torch.rand(1), np.random.rand()) == want
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_the_model_is_left_alone(clips):
    inputs, base, args = clips
    model = Small().eval()
    a = at.attribute(at.head_forward(model), inputs, base, n_steps=2, args=args)
    assert all(p.grad is None for p in model.parameters()) and not a.values[0].requires_grad and not inputs[0].requires_grad


def test_wrong_calls_are_named(clips, forward):
    inputs, base, args = clips
    with pytest.raises(ValueError, match="method must be"): at.attribute(forward, inputs, base, method="guess", args=args)
    with pytest.raises(ValueError, match="a baseline of shape"): at.attribute(forward, inputs, (base[0][:1], *base[1:]), args=args)
    with pytest.raises(ValueError, match="unknown baselines"): at.baselines_of(inputs, ("black", "still", "quiet"))
    with pytest.raises(ValueError, match="as many baselines"): at.baselines_of(inputs, ("zeros",))
    with pytest.raises(ValueError, match="sign must be"): at.heat_map(inputs[2], "up")


def test_occlusion_windows_cover_odd_sizes():
    inputs = torch.ones(1, 2, 3, 13, 13), torch.ones(1, 7, 5, 5), torch.ones(1, 9, 11)
    a = at.attribute(lambda *x: sum(v.flatten(1).sum(1) for v in x), inputs, tuple(map(torch.zeros_like, inputs)), method="occlusion")
    for v in a.values: assert v.min() > 0


def test_occlusion_finds_the_pixel_that_matters():
    x = torch.ones(1, 1, 3, 16, 16), torch.ones(1, 8, 8)
    a = at.attribute(lambda f, s: 5*f[:, 0, 0, 9, 4], x, tuple(map(torch.zeros_like, x)), method="occlusion")
    heat = at.heat_map(a.values[0])[0, 0]
    assert heat.nonzero().min(0).values.tolist() == [8, 4] and heat.nonzero().max(0).values.tolist() == [9, 5]
    assert a.values[0].sum().item() == pytest.approx(5, abs=1e-4) and a.values[1].abs().sum() == 0


def test_blur_keeps_constants_and_mass():
    assert torch.allclose(at.blur(torch.full((2, 3, 9, 9), .3), 2.), torch.tensor(.3))
    x = torch.zeros(1, 41, 41); x[0, 20, 20] = 1
    y = at.blur(x, 3.)
    assert y.sum().item() == pytest.approx(1, abs=1e-5) and y[0, 20, 20] == y.max() and at.blur(x, 0) is x


def test_baselines_take_shapes_from_the_input(clips):
    for kind in at.BASELINES:
        for x in clips[0]: assert at.BASELINES[kind](x).shape == x.shape


def test_mask_in_crop_outside_and_identity():
    mask = (stream("mask").random((2, 20, 30)) > .5).astype(np.uint8)
    np.testing.assert_array_equal(at.mask_in_crop(mask, [[0, 0, 80, 80]]*2, (80, 120), 20), mask[:, :, :20].astype(bool))      # a quarter of the frame, cut at mask pixels
    ones = np.ones((1, 20, 30))
    beside = at.mask_in_crop(ones, [[-80, 0, 80, 160]], (80, 120), 16)[0]
    assert beside[:8, 8:].all() and not beside[8:].any() and not beside[:, :8].any()                                           # only the part inside the frame


def test_pointing_game_tolerance_and_undefined():
    heat, mask = np.zeros((3, 8, 8)), np.zeros((3, 8, 8), bool)
    heat[0, 2, 2] = heat[1, 2, 2] = 1; mask[0, 2, 4] = mask[2, 1, 1] = True
    np.testing.assert_array_equal(at.pointing_game(heat, mask), [0, np.nan, np.nan])            # a miss, nothing tampered, nothing hot
    np.testing.assert_array_equal(at.pointing_game(heat, mask, 2), [1, np.nan, np.nan])
    assert np.isnan(at.mask_iou(heat, mask)[1:]).all() and np.isnan(at.inside(heat, mask)[1:]).all()


def test_iou_by_hand_and_chance():
    heat = np.arange(16.).reshape(1, 4, 4); mask = np.zeros((1, 4, 4), bool); mask[0, 3] = True
    assert at.mask_iou(heat, mask) == 1 and at.mask_iou(heat[:, ::-1], mask)[0] == 0
    mask[0, 2] = True; shifted = np.roll(heat, -1, 1)                                            # 8 hottest: rows 1, 2; mask: rows 2, 3
    assert at.mask_iou(shifted, mask)[0] == pytest.approx(4/12)
    g = stream("chance"); noise, half = g.random((300, 16, 16)), np.broadcast_to(np.arange(16)[:, None] < 8, (300, 16, 16))
    got = at.localisation(noise, half)
    for key, chance in (("hit", "chance_hit"), ("inside", "chance_hit"), ("iou", "chance_iou")): assert np.mean(got[key]) == pytest.approx(np.mean(got[chance]), abs=.08)


def test_profiles_add_up(clips, forward):
    inputs, base, args = clips
    a = at.attribute(forward, inputs, base, n_steps=2, args=args)
    for v in a.values:
        for p in at.profiles(v).values(): torch.testing.assert_close(p.sum(1), v.flatten(1).sum(1), atol=1e-4, rtol=1e-4)
    assert [tuple(at.profiles(v)["time"].shape) for v in a.values] == [(3, 2), (3, 10), (3, 20)]


def test_span_mask_needs_half_a_step():
    assert at.span_mask((.04, .16), 5, .2).tolist() == [False, True, True, True, False]
    assert at.span_mask((.03, .05), 5, .2).tolist() == [False]*5 and at.span_mask((0, .02), 5, .2)[0]


def test_against_references_is_complete_and_nothing_for_the_reference_itself(clips, forward):
    inputs, _, args = clips
    a = at.against(forward, inputs, tuple(x[1:] for x in inputs), n_steps=64, args=args)
    assert a.delta.abs().max() < 1e-3 < (a.logit - a.logit_baseline).abs().max()
    torch.testing.assert_close(at.contributions(a.values).sum(1), a.logit - a.logit_baseline, atol=1e-3, rtol=0)
    alone = at.against(forward, inputs, tuple(x[:1] for x in inputs), args=args)
    assert all(v[0].abs().max() == 0 for v in alone.values) and alone.values[0][1].abs().max() > 0


def test_genuine_heat_in_the_same_region_is_the_opponent():
    mask = np.zeros((3, 8, 8), bool); mask[:2, 4:] = True
    heat, genuine = np.zeros((3, 8, 8)), np.zeros((3, 8, 8))
    heat[:, 6, 2] = 1; genuine[0, 5, 5] = 1; genuine[1, 1, 1] = 1
    got = at.localisation_beside(heat, mask, genuine)
    np.testing.assert_array_equal(got["hit"], [1, 1, np.nan]); np.testing.assert_array_equal(got["genuine_hit"], [1, 0, np.nan])
    assert got["genuine_inside"][0] == 1 and got["genuine_inside"][1] == 0 and {*got} == {*at.localisation(heat, mask), "genuine_hit", "genuine_iou", "genuine_inside"}
    alone = at.localisation_beside(heat, mask, None)
    assert np.isnan(alone["genuine_hit"]).all() and (at.k_of_n(got["hit"], "faces"), at.k_of_n(got["genuine_hit"]), at.k_of_n(alone["genuine_hit"])) == ("2 of 2 faces", "1 of 2", "0 of 0")
