"Rendered faces and picture manipulations: what a corpus relies on."
import hashlib, subprocess, sys
from dataclasses import replace
from pathlib import Path
import numpy as np
import pytest
import torch
from cad_nb.core import FPS, stream
from cad_nb.forge.face import LOOKS, STYLES, blinks, canvas, expose, grain, hills, identity, render, scene, stretching, twins
from cad_nb.forge.tamper import changed, donor_size, lose_texture, other_moments, own_face, redrive_mouth, settings, similarity, softening, swap_face

METHODS = ("faceswap", "fsgan", "Deepfakes", "wav2lip", "NeuralTextures")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads(); torch.set_num_threads(1); yield; torch.set_num_threads(before)


def track(T, at=0.):
    t = np.arange(T)/FPS
    return np.stack([np.clip(.5 - .6*np.cos(2*np.pi*3*t + at), 0, 1), .5 + .4*np.sin(7*t + at), np.clip(np.sin(5*t + at), 0, 1)], 1)


def clip(k, T=6, size=128, look="interview"):
    who, where = identity(stream(k, "who")), scene(stream(k, "where"), T, look)
    return who, where, render(who, where, track(T), size)


def fake(method, strength=.5, T=4, k=0):
    who, where, take = clip(k, T)
    rng, clean = stream(k, method), replace(where, noise=0.)
    if method == "NeuralTextures": return take, lose_texture(take.frames, take.points, strength, rng)
    size = donor_size(128, strength)
    if method == "wav2lip":
        donor = render(who, clean, track(T, 2.), size)
        return take, redrive_mouth(take.frames, take.points, donor.frames, donor.points, strength, rng)
    donor = render(identity(stream(k + 1, "who")), clean, track(T), size)
    return take, swap_face(take.frames, take.points, donor.frames, donor.points, strength, rng, method)


def digest():
    take, (frames, mask, detail) = fake("fsgan", T=3)
    return hashlib.sha256(take.frames.tobytes() + take.points.tobytes() + frames.tobytes() + mask.tobytes() + repr(detail).encode()).hexdigest()


def test_same_bytes_in_every_process_and_with_more_threads():
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import torch; torch.set_num_threads(2); from test_forge_face import digest; print(digest())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == digest()


@pytest.mark.parametrize("size", [48, 96, 128])
def test_shapes_and_types(size):
    _, _, take = clip(1, 3, size)
    assert take.frames.shape == (3, size, size, 3) and take.frames.dtype == np.uint8
    assert take.points.shape == (3, 5, 2) and take.boxes.shape == (3, 4) and take.gap.shape == (3,)
    assert take.face_mask.shape == (3, size, size) and 0 <= take.face_mask.min() and take.face_mask.max() <= 1.001
    assert (take.boxes[:,:2] < take.points.min(1)).all() and (take.boxes[:,2:] > take.points.max(1)).all()


@pytest.mark.parametrize("style", sorted({s for v in STYLES.values() for s in v}))
def test_every_hair_style_beard_and_glasses_renders(style):
    who, where = identity(stream(2, "who")), scene(stream(2, "where"), 1)
    for w in (replace(who, hair=style), replace(who, hair=style, beard=1., moustache=1., glasses=.03, freckles=1., age=1., makeup=1.)):
        take = render(w, where, track(1), 64)
        assert 20 < take.frames.mean() < 235
        assert (take.face_mask[0] > .5).mean() > .08


@pytest.mark.parametrize("look", LOOKS)
def test_scenes_move_and_stay_in_the_frame(look):
    for k in range(30):
        s = scene(stream(k, look), 50, look)
        assert len(s.centre) == len(s.scale) == len(s.blink) == len(s.gaze) == 50
        assert (np.abs(s.centre - .49) < .13).all() and np.abs(s.yaw).max() < .8 and 0 <= s.blink.min() and s.blink.max() <= 1
        assert np.abs(np.diff(s.centre, axis=0)).max() < .012   # no jumps


def test_lengths_must_agree():
    who, where = identity(stream(0)), scene(stream(0), 5)
    with pytest.raises(ValueError, match="4 frames, the scene 5"): render(who, where, track(4))


def test_blinks_shut_the_eyes():
    assert blinks(stream(3), 500).max() == 1 and (blinks(stream(3), 500) == 0).mean() > .5


def test_dark_mouth_pixels_follow_the_track():
    "On average over persons, and for each person when only the jaw moves."
    T, found = 12, []
    for k in range(5):
        who, where = replace(identity(stream(k, "who")), beard=0., moustache=0.), replace(scene(stream(k, "where"), T), noise=0.)
        m = np.stack([track(T)[:,0], np.full(T, .4), np.zeros(T)], 1); take = render(who, where, m)
        gray, dark = take.frames.mean(-1), []
        for f, p, unit in zip(gray, take.points, where.scale*128):
            (x, y), r = p[3:].mean(0).round().astype(int), int(.32*unit)
            square = f[y - r//2:y + r + 2,x - r:x + r]; dark.append((square < .5*np.median(square)).sum())
        found.append(np.corrcoef(dark, m[:,0])[0,1])
    assert np.mean(found) > .85 and min(found) > .6


def test_mouth_moves_with_its_frame_only():
    "A frame depends on its own row of the track: no smoothing, no delay."
    who, where = identity(stream(4, "who")), scene(stream(4, "where"), 5)
    a = track(5); b = a.copy(); b[2] = 1 - b[2]
    differs = (render(who, where, a).frames != render(who, where, b).frames).any((1, 2, 3))
    assert differs.tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("strength", [0., 1.])
def test_mask_is_exactly_what_changed(method, strength):
    take, (frames, mask, detail) = fake(method, strength)
    assert frames.shape == take.frames.shape and frames.dtype == np.uint8 and mask.shape == (4, 32, 32) and mask.dtype == np.uint8
    differs = (frames != take.frames).any(-1)
    cells = differs.reshape(4, 32, 4, 32, 4).any((2, 4))
    assert (cells == mask.astype(bool)).all() and .01 < mask.mean() < .35
    assert detail["strength"] == strength and detail["shape"] in ("hull", "ellipse", "square", "lower", "mouth")


@pytest.mark.parametrize("method", METHODS)
def test_strength_is_felt_and_brightness_is_kept(method):
    error = []
    for s in (0., 1.):
        pairs = [fake(method, s, T=1, k=k) for k in range(3)]
        error.append(np.mean([np.abs(f.astype(float) - t.frames).mean() for t, (f, _, _) in pairs]))
        assert abs(np.mean([f.mean() - t.frames.mean() for t, (f, _, _) in pairs])) < 2
    assert error[0] < error[1]


def test_methods_differ_in_kind():
    a, b = (settings(m, .5, stream(0)) for m in ("faceswap", "fsgan"))
    assert a.soft < .5*b.soft and a.blur == 0 < b.blur and a.colour > b.colour


def test_donor_takes_the_targets_pose():
    "Points of the donor land on the points of the clip, whatever the donor's size."
    _, where, take = clip(5, 4)
    donor = render(identity(stream(6, "who")), where, track(4), 80)
    m = similarity(donor.points, take.points)
    landed = np.einsum("tij,tpj->tpi", m[:,:,:2], donor.points) + m[:,None,:,2]
    assert np.linalg.norm(landed - take.points, axis=-1)[:,:3].mean() < 3


def test_works_on_footage_of_any_size():
    "Not square, a multiple of nothing, the face near the border, a donor of another size."
    _, _, take = clip(7, 3); _, _, other = clip(8, 3, 96)
    frames = np.ascontiguousarray(take.frames[:,:117,9:]); points = take.points - [9, 0]
    for donor, donor_points in ((other.frames, other.points), own_face(frames, points, stream(1))):
        out, mask, _ = swap_face(frames, points, donor, donor_points, .7, stream(2), "Deepfakes")
        assert out.shape == frames.shape and mask.shape == (3, 29, 29) and 0 < mask.mean() < .5
    assert (changed(frames, frames) == 0).all()


def test_other_moments_run_on_without_a_cut():
    i = other_moments(40, stream(0))
    assert len(i) == 40 and set(np.abs(np.diff(i))) <= {1} and np.mean(i == np.arange(40)) < .2


def test_matrices_resample_as_torch_does():
    picture = torch.from_numpy(stream(0).standard_normal((2, 3, 43, 30), dtype=np.float32))
    for mode, corners in (("bicubic", False), ("bilinear", False), ("bilinear", True), ("area", None)):
        size = (21, 15) if mode == "area" else (128, 96)
        down, across = (stretching(n, k, mode, bool(corners)) for n,k in zip(size, picture.shape[2:]))
        torch.testing.assert_close(down @ picture @ across.T, torch.nn.functional.interpolate(picture, size, mode=mode, align_corners=corners), atol=1e-5, rtol=0)


@pytest.mark.parametrize("n, cells", [(96, 12), (160, (7, 110)), (120, (16, 140)), (160, (130, 60))])
def test_grain_is_the_same_texture_at_every_size(n, cells):
    fine, coarse = grain(stream(0), 2*n, cells), grain(stream(0), n, cells)
    assert fine.shape == (2*n, 2*n) and .2 < coarse.std() < 1.1
    assert np.corrcoef(fine.view(n, 2, n, 2).mean((1, 3)).flatten(), coarse.flatten())[0,1] > .8


def test_hills_add_up():
    (x, y, _), at = canvas(64), lambda cx, cy, sx, sy: torch.exp(-.5*((x - cx)/sx)**2 - .5*((y - cy)/sy)**2)
    torch.testing.assert_close(hills(x, y, (.4, .1, .6, .2, .3), *twins(-.2, .5, 0., .1, .1)), .4*at(.1, .6, .2, .3) - .2*(at(.5, 0, .1, .1) + at(-.5, 0, .1, .1)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("sigma", [0., .4, 1., 1.6])
def test_softening_keeps_the_mean_and_spreads_a_dot(sigma):
    blur = softening(31, sigma)
    torch.testing.assert_close(blur.sum(1), torch.ones(31)); torch.testing.assert_close(blur @ torch.full((31,), 7.), torch.full((31,), 7.))
    spread = ((torch.arange(31.) - 15)**2*blur[15]).sum().sqrt()
    assert abs(float(spread) - sigma) < .16 + .25*sigma
    torch.testing.assert_close(blur, blur.flip(0, 1))


def test_a_camera_without_noise_adds_none():
    light = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))*1.2
    want = (light.clamp(0, 1).sqrt()*255 + .5).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(expose(light.clone(), 0., stream(0)), want) and want.max() == 255
    assert np.abs(expose(light.clone(), 4., stream(0)).astype(int) - want).mean() > 1


@pytest.mark.parametrize("size", [(32, 48), (37, 51)])
def test_one_changed_value_marks_its_cell(size):
    before = np.zeros((2, *size, 3), np.uint8); after = before.copy(); after[1,6,9,2] = 1; after[0,31,31,0] = 255
    mask = changed(before, after)
    assert mask.shape == (2, size[0]//4, size[1]//4) and [tuple(i) for i in np.argwhere(mask)] == [(0, 7, 7), (1, 1, 2)]
