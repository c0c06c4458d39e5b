"Files of many kinds, whole and broken, through the media room. Asserts that do not teach; the lessons are in nbs/10-14."
import struct, sys, types
from pathlib import Path
import av, numpy as np, pytest, torch
from cad_nb.core import SAMPLE_RATE, SAMPLES_PER_FRAME
from cad_nb.media import faces as faces_room, video as video_room
from cad_nb.media.audio import MediaError, decode_audio, resample, resampled
from cad_nb.media.encode import write_clip
from cad_nb.media.faces import Boxes, detector, faces_of, seen_well
from cad_nb.media.track import FADE, Follower, TrackOptions, cut_squares, match, read_clip
from cad_nb.media.video import MOST_PIXELS, Picture, on_grid, picture, probe, read_frames

REAL = Path(__file__).resolve().parents[2]/"shared"/"real_clips"
OPTIONS = TrackOptions(detect_every=5, min_face_px=16, face_px=32, mouth_px=16, max_s=60., min_frames=10)
STATUSES = {"ok", "missing", "not_media", "corrupt", "no_video", "decode_error", "no_face", "face_too_small", "too_short"}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    n = torch.get_num_threads(); torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


@pytest.fixture(scope="module")
def mtcnn(): return detector("mtcnn")


def flash(n=40, at=20, fps=25, h=64, w=80):
    "Pictures with a lamp in the middle that goes on at time at/25 s, and a click at the same instant."
    frames = np.full((n,h,w,3), 40, np.uint8)
    frames[np.arange(n)/fps >= at/25 - 1e-6, h//2-8:h//2+8, w//2-8:w//2+8] = 220
    sound = np.zeros(max(round(n/fps*SAMPLE_RATE), (at+1)*SAMPLES_PER_FRAME), np.float32)
    sound[at*SAMPLES_PER_FRAME:at*SAMPLES_PER_FRAME+160] = .8*np.sin(2*np.pi*1000*np.arange(160)/SAMPLE_RATE)
    return frames, sound[:round(n/fps*SAMPLE_RATE)]


def lit(frames):
    "The first picture whose lamp is on."
    return [f[f.shape[0]//2-3:f.shape[0]//2+3, f.shape[1]//2-3:f.shape[1]//2+3].mean() > 128 for f in frames].index(True)


def write_any(path, frames, samples, vcodec, acodec, fps=25, rate=SAMPLE_RATE, pix="yuv420p", fmt=None, delay_s=0., options=None, **kw):
    "A file of any container and codecs; the sound begins `delay_s` after the pictures."
    with av.open(str(path), "w", format=fmt, **kw) as out:
        v = out.add_stream(vcodec, rate=fps, options=options or {})
        v.width, v.height, v.pix_fmt, v.thread_count = frames.shape[2], frames.shape[1], pix, 1
        a = acodec and out.add_stream(acodec, rate=rate, layout="mono")
        for i,f in enumerate(frames):
            f = av.VideoFrame.from_ndarray(f, format="rgb24"); f.pts = i
            out.mux(v.encode(f))
        out.mux(v.encode())
        if a:
            samples = samples[::SAMPLE_RATE//rate] if rate < SAMPLE_RATE else np.repeat(samples, rate//SAMPLE_RATE)
            fifo, sound = av.AudioFifo(), av.AudioFrame.from_ndarray(samples[None].copy(), format="fltp", layout="mono")
            sound.sample_rate, sound.pts = rate, 0
            resampler = av.AudioResampler(format=a.format, layout="mono", rate=rate)
            for r in resampler.resample(sound): fifo.write(r)
            size, pts = a.codec_context.frame_size or 1024, round(delay_s*rate)
            while fifo.samples:
                block = fifo.read(min(size, fifo.samples)); block.pts = pts; pts += block.samples
                out.mux(a.encode(block))
            out.mux(a.encode())
    return path


KINDS = {
    "h264_aac.mp4": dict(vcodec="libx264", acodec="aac"),
    "h264_mp3.mkv": dict(vcodec="libx264", acodec="libmp3lame"),
    "ffv1_flac.mkv": dict(vcodec="ffv1", acodec="flac"),
    "mpeg4_mp3.avi": dict(vcodec="mpeg4", acodec="libmp3lame"),
    "mpeg4_pcm.avi": dict(vcodec="mpeg4", acodec="pcm_s16le"),
    "vp8_opus.webm": dict(vcodec="libvpx", acodec="libopus", rate=48_000),
    "h264_aac.ts": dict(vcodec="libx264", acodec="aac", fmt="mpegts"),
    "mpeg1_mp2.mpg": dict(vcodec="mpeg1video", acodec="mp2", fmt="mpeg"),
    "h264_aac.mov": dict(vcodec="libx264", acodec="aac", rate=48_000),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_flash_and_a_click_stay_together(tmp_path, name):
    frames, sound = flash()
    path = write_any(tmp_path/name, frames, sound, **KINDS[name])
    reader = read_frames(path)
    ticks, seen = zip(*reader)
    white = lit(seen)
    late = 2 if name == "mpeg4_mp3.avi" else 0  # this muxer makes room for the silence that MP3 begins with, and holds the first picture for it
    assert ticks == tuple(range(40 + late)) and white == 20 + late
    heard = decode_audio(path, zero_s=reader.zero_s).samples
    onset = int((abs(heard) > .1).argmax())
    assert abs(onset - white*SAMPLES_PER_FRAME) < (320 if late else 80), f"{onset/SAMPLES_PER_FRAME:.2f} frames"  # 5 ms
    assert abs(len(heard) - len(sound)) < 2500


@pytest.mark.parametrize("fps", [10, 15, 24, 30, 50, 60])
def test_other_rates_keep_the_instant(tmp_path, fps):
    frames, sound = flash(n=2*fps, at=25, fps=fps)
    path = write_clip(tmp_path/"a.mp4", frames, sound, fps=fps)
    reader = read_frames(path)
    seen = [f for _,f in reader]
    assert len(seen) == 50 and abs(reader.fps_in - fps) < .01
    assert abs(lit(seen) - 25) <= 25/fps/2 + .5


def test_lossless_pictures_come_back_pixel_by_pixel(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (12,48,64,3), dtype=np.uint8)
    path = write_any(tmp_path/"a.mkv", frames, None, "ffv1", None, pix="bgr0")
    assert np.array_equal(np.stack([f for _,f in read_frames(path)]), frames)


def test_start_and_stop_are_ticks_of_the_whole_file(tmp_path):
    frames, _ = flash()
    path = write_clip(tmp_path/"a.mp4", frames, None)
    everything = [f for _,f in read_frames(path)]
    part = read_frames(path, 18, 23)
    got = list(part)
    assert [t for t,_ in got] == [18,19,20,21,22] and part.more
    assert all(np.array_equal(f, everything[t]) for t,f in got)


@pytest.mark.parametrize("turns,matrix", [(-1, (0,65536,0,-65536,0)), (2, (-65536,0,0,0,-65536)), (1, (0,-65536,0,65536,0))])
def test_rotation(tmp_path, turns, matrix):
    y,x = np.mgrid[:48,:80]
    frames = np.stack([np.stack([3*x, 5*y, 0*x], -1)]*3).astype(np.uint8)
    data = bytearray(write_clip(tmp_path/"a.mp4", frames, None).read_bytes())
    plain = next(iter(read_frames(tmp_path/"a.mp4")))[1]
    at = data.index(b"tkhd") + 44
    data[at:at+20] = struct.pack(">5i", *matrix)
    (tmp_path/"b.mp4").write_bytes(data)
    assert np.array_equal(next(iter(read_frames(tmp_path/"b.mp4")))[1], np.rot90(plain, turns))


def test_wide_pixels(tmp_path):
    frames, _ = flash(n=5, h=48, w=64)
    with av.open(str(tmp_path/"a.mp4"), "w") as out:
        v = out.add_stream("libx264", rate=25); v.width, v.height, v.pix_fmt = 64, 48, "yuv420p"
        v.codec_context.sample_aspect_ratio = 2
        for i,f in enumerate(frames): f = av.VideoFrame.from_ndarray(f, format="rgb24"); f.pts = i; out.mux(v.encode(f))
        out.mux(v.encode())
    assert next(iter(read_frames(tmp_path/"a.mp4")))[1].shape == (48,128,3)


def test_sound_that_begins_late_is_preceded_by_silence(tmp_path):
    frames, sound = flash(n=50)
    path = write_any(tmp_path/"a.mkv", frames, sound, "libx264", "flac", delay_s=.4)
    heard = decode_audio(path, zero_s=0.)
    assert abs(heard.start_s - .4) < .002
    assert abs(int((abs(heard.samples) > .1).argmax()) - 30*SAMPLES_PER_FRAME) < 40
    assert not heard.samples[:6000].any()


def test_the_second_sound_track_is_there_when_asked_for(tmp_path):
    with av.open(str(tmp_path/"a.mkv"), "w") as out:
        tracks = [out.add_stream("flac", rate=SAMPLE_RATE, layout="mono") for _ in range(2)]
        for level,stream in zip((1000, 8000), tracks):
            frame = av.AudioFrame.from_ndarray(np.full((1,4096), level, np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE, 0
            out.mux(stream.encode(frame)); out.mux(stream.encode())
    levels = [decode_audio(tmp_path/"a.mkv", i).samples.mean()*2**15 for i in range(2)]
    assert np.allclose(levels, [1000, 8000], atol=2)
    with pytest.raises(MediaError, match="no sound"): decode_audio(tmp_path/"a.mkv", 2)


@pytest.mark.parametrize("channels", [2, 8, 16])
def test_sound_of_many_channels(tmp_path, channels):
    "From eight planes on PyAV counts wrongly, and a damaged packet may claim any number: their mean is that of all of them, and no memory beyond is read."
    tone = (np.sin(2*np.pi*300*np.arange(48_000)/48_000)*.5).astype(np.float32)
    share = np.linspace(0, 1, channels).astype(np.float32)                                # each channel at a level of its own
    layout = {2: "stereo", 8: "7.1", 16: "hexadecagonal"}[channels]
    with av.open(str(tmp_path/"a.mkv"), "w") as out:
        stream = out.add_stream("aac", rate=48_000, layout=layout); stream.bit_rate = 64_000*channels
        block = av.AudioFrame.from_ndarray((tone[:,None]*share).reshape(1, -1), format="flt", layout=layout); block.sample_rate, block.pts = 48_000, 0
        for frame in av.AudioResampler("fltp", layout, 48_000, frame_size=1024).resample(block): out.mux(stream.encode(frame))
        out.mux(stream.encode())
    heard = decode_audio(tmp_path/"a.mkv")
    assert heard.channels_in == channels and not heard.tally.n_bad
    assert abs(heard.samples[2000:14_000].std() - .5*share.mean()/2**.5) < .02


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000, 44099])
def test_resampling_keeps_pitch_and_length(rate):
    tone = np.sin(2*np.pi*300*np.arange(rate)/rate).astype(np.float32)
    out = resample(tone, rate)
    assert abs(len(out) - SAMPLE_RATE) <= 20
    assert abs(int(abs(np.fft.rfft(out[:15_000])).argmax())*SAMPLE_RATE/15_000 - 300) < 2


def test_grid_survives_odd_time_stamps():
    assert list(on_grid([])) == []
    assert [t for t,_ in on_grid([(5., 0., "a")])] == []                      # a picture that lasts no time
    assert [t for t,_ in on_grid([(5., 9e9, "a")])] == list(range(25))        # and one that claims to last for ever
    ticks, what = zip(*on_grid([(0,.04,"a"), (1.0,.04,"b")]))
    assert ticks == tuple(range(26)) and "".join(what) == "a"*13 + "b"*13


@pytest.mark.parametrize("content,status", [(b"", "not_media"), (b"hello "*99, "not_media"), (bytes(5000), "not_media"), (b"\0\0\0\x20ftypisom" + bytes(400), "corrupt"),
                                            (b"RIFF\xff\xff\0\0AVI LIST", "corrupt"), (b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", "not_media"), (b"ffconcat version 1.0\nfile real.mp4\n", "not_media"),
                                            (b"<?xml version='1.0'?><MPD></MPD>", "not_media"), (b"\x89PNG\r\n\x1a\n" + bytes(99), "not_media"), (b"%PDF-1.4" + bytes(99), "not_media")])
def test_not_a_video(tmp_path, content, status):
    write_clip(tmp_path/"real.mp4", *flash())
    (tmp_path/"x.mp4").write_bytes(content)
    clip = read_clip(tmp_path/"x.mp4", detector("none"), OPTIONS)
    assert clip.status == status and "x.mp4" in clip.reason and clip.face is None


@pytest.mark.parametrize("path,status", [("nowhere.mp4", "missing"), (".", "not_media"), ("/dev/null", "not_media"), ("http://127.0.0.1/a.mp4", "missing"), ("a\0b", "missing"), ("concat:real.mp4", "missing")])
def test_not_a_file(tmp_path, path, status):
    assert read_clip(tmp_path/path, detector("none"), OPTIONS).status == status


def test_every_cut_and_flip_ends_in_a_status(tmp_path):
    frames, sound = flash()
    frames = frames + np.random.default_rng(0).integers(0, 25, frames.shape, dtype=np.uint8)
    whole = write_clip(tmp_path/"a.mp4", frames, sound).read_bytes()
    rng, none, seen = np.random.default_rng(1), detector("none"), {}
    for i in range(40):
        data = bytearray(whole)
        if i < 20: data = data[:len(whole)*i//20]
        else:
            for at in rng.integers(0, len(data), 1 + 2*(i-20)): data[at] = rng.integers(256)
        (tmp_path/"b.mp4").write_bytes(data)
        clip = read_clip(tmp_path/"b.mp4", none, OPTIONS)
        assert clip.status in STATUSES and (clip.reason or clip.status == "ok"), clip.status
        seen[clip.status] = seen.get(clip.status, 0) + 1
        if clip.status == "ok": assert len(clip.face) == len(clip.mouth) == len(clip.boxes) == clip.n_frames and (clip.audio is None or len(clip.audio) == clip.n_frames*SAMPLES_PER_FRAME)
    assert seen.get("ok") and len(seen) > 2, seen


def test_much_damage_is_not_judged(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (40,64,64,3), dtype=np.uint8)
    data = bytearray(write_clip(tmp_path/"a.mp4", frames, None).read_bytes())
    start = data.index(b"mdat") + len(data)//8
    for at in range(start, len(data) - 50, len(data)//60): data[at:at+40] = bytes(40)
    (tmp_path/"b.mp4").write_bytes(data)
    clip = read_clip(tmp_path/"b.mp4", detector("none"), OPTIONS)
    assert clip.status == "corrupt" and "%" in clip.reason


def test_crops_alone_are_taken_whole(tmp_path):
    frames, sound = flash(h=64, w=64)
    clip = read_clip(write_clip(tmp_path/"a.mp4", frames, sound), detector("none"), OPTIONS)
    assert clip.status == "ok" and clip.n_frames == 40 and clip.face.shape == (40,32,32,3) and clip.mouth.shape == (40,16,16)
    assert np.allclose(clip.boxes, [0,0,64,64], atol=1e-3)
    assert lit(clip.face) == 20
    onset = int((abs(clip.audio) > .1).argmax())
    assert abs(onset - 20*SAMPLES_PER_FRAME) < 80


def test_sound_that_ends_early_shortens_the_clip_or_is_left_out(tmp_path):
    frames, sound = flash(n=50, h=64, w=64)
    some = read_clip(write_clip(tmp_path/"a.mp4", frames, sound[:30*640]), detector("none"), OPTIONS)
    few = read_clip(write_clip(tmp_path/"b.mp4", frames, sound[:4*640]), detector("none"), OPTIONS)
    assert some.status == few.status == "ok"
    assert 30 <= some.n_frames <= 32 and len(some.audio) == some.n_frames*640
    assert few.n_frames == 50 and few.audio is None and "sound ends" in few.reason


def test_long_files_are_read_up_to_a_limit(tmp_path):
    frames, sound = flash(n=75, h=64, w=64)
    options = TrackOptions(**{**vars(OPTIONS), "max_s": 2.})
    clip = read_clip(write_clip(tmp_path/"a.mp4", frames, sound), detector("none"), options)
    assert clip.status == "ok" and clip.n_frames == 50 and "first 2 s" in clip.reason and abs(clip.duration_s - 3) < .1


class Listed:
    "A detector that finds what it is told; `again` is what a real one has to follow a face with."
    name, fingerprint, long_side_px = "listed", "", None
    def __init__(self, story): self.story, self.searched = story, []
    def detect(self, frames, path=None, ticks=None): self.searched += ticks; return [faces_of(self.story(t)) for t in ticks]


def as_picture(rgb): return Picture(av.VideoFrame.from_ndarray(rgb, format="rgb24"))


def follow(detector, pictures, options=OPTIONS):
    follower = Follower(detector, options)
    for t,rgb in enumerate(pictures): follower.see(t, as_picture(rgb))
    follower.end()
    return follower


def test_a_picture_that_changes_its_size_begins_a_shot():
    small, large = np.zeros((10,64,64,3), np.uint8), np.zeros((10,96,128,3), np.uint8)
    f = follow(detector("none"), [*small, *large], TrackOptions(**{**vars(OPTIONS), "detect_every": 4}))
    assert f.shots == [0, 10] and [(t.start, t.stop, len(t.crops)) for t in f.tracks] == [(0,10,10), (10,20,10)]


def test_faces_that_swap_places_over_a_cut_are_two_tracks():
    left, right = [10,10,50,50], [100,10,140,50]
    assert match(np.array([left, right]), np.array([right, left])) == {0: 1, 1: 0}
    pictures = np.random.default_rng(0).integers(0, 256, (2,64,160,3), dtype=np.uint8)[[0]*8 + [1]*8]
    f = follow(Listed(lambda t: [left, right]), pictures)
    assert f.shots == [0, 8] and sorted((t.shot, t.start, t.stop) for t in f.tracks) == [(0,0,8), (0,0,8), (1,8,16), (1,8,16)]


@pytest.mark.parametrize("missed,spans", [(range(5,6), [(0,40)]), (range(5,11), [(0,1), (15,40)]), (range(20,40), [(0,16)])])
def test_a_face_may_be_missed_once(missed, spans):
    f = follow(Listed(lambda t: [] if t in missed else [[10,10,50,50]]), np.full((40,64,64,3), 90, np.uint8))
    assert [(t.start, t.stop) for t in f.tracks] == spans and all(len(t.crops) == t.stop - t.start for t in f.tracks)


def test_a_dissolve_joins_no_two_people_and_light_that_comes_up_parts_none():
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 256, (2,64,64,3)).astype(float)
    k = np.linspace(0, 1, 2*FADE)[:,None,None,None]
    mixed, brighter = (one*(1 - k) + other*k).astype(np.uint8), (one*k).astype(np.uint8)
    whole = lambda x, n=30: np.stack([x]*n).astype(np.uint8)
    face = Listed(lambda t: [[10,10,50,50]])
    spans = [(t.start, t.stop) for t in follow(face, [*whole(one), *mixed, *whole(other)]).tracks if t.stop - t.start > 12]
    assert not any(a < 30 + FADE and b > 30 + FADE for a,b in spans) and spans[0][1] >= 25 and spans[-1][1] == 60 + 2*FADE
    assert len(follow(face, [*whole(one*0), *brighter, *whole(one)]).tracks) == 1


def test_the_whole_picture_is_searched_seldom(mtcnn, monkeypatch):
    if not REAL.is_dir(): pytest.skip(f"{REAL} is absent")
    searched = []
    monkeypatch.setattr(type(mtcnn), "detect", lambda self, frames, path=None, ticks=None, whole=type(mtcnn).detect: (searched.extend(ticks), whole(self, frames, path, ticks))[1])
    clip = read_clip(REAL/"news_590p_25fps.mp4", mtcnn, OPTIONS)
    assert clip.status == "ok" and clip.n_frames >= 120 and len(searched) <= 4, searched


def test_what_is_held_does_not_grow():
    f, most = Follower(Listed(lambda t: [[10,10,50,50]]), OPTIONS), []
    picture = as_picture(np.full((64,64,3), 90, np.uint8))
    for t in range(600): f.see(t, picture); f.forget(f.settled - 40); most.append(f.held_bytes)
    assert max(most[400:]) == max(most[100:300]) < 600_000 and len(f.tracks) == 1


def test_a_crop_does_not_depend_on_when_it_was_made():
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (200,64,64,3), dtype=np.uint8); pictures[1:] = pictures[:1]
    story = Listed(lambda t: [[10 + 5*np.sin(t/9), 10, 50 + 5*np.sin(t/9), 50]])
    long, short = follow(story, pictures).tracks[0], follow(story, pictures[:120]).tracks[0]
    for t in (0, 40, 80): assert np.array_equal(long.crops[t][0], short.crops[t][0]) and np.allclose(long.crops[t][2], short.crops[t][2])


@pytest.mark.parametrize("pix", ["yuv420p", "yuvj420p", "yuv422p10le", "gray", "rgb24", "nv12", "yuv444p"])
def test_parts_look_like_the_whole(pix):
    y,x = np.mgrid[:48,:64]
    frame = av.VideoFrame.from_ndarray(np.stack([3*x, 4*y, x+y], -1).astype(np.uint8), format="rgb24").reformat(format=pix)
    whole, part = picture(frame), Picture(frame)
    assert abs(part.cut(8, 12, 24, 20, 24, 20).astype(int) - whole[12:32,8:32]).max() <= 8
    assert abs(part.small(32).astype(int) - whole.reshape(24,2,32,2,3).mean((1,3))).mean() < 3


def test_a_picture_beyond_all_size_is_refused_before_it_is_made(tmp_path, monkeypatch):
    write_any(tmp_path/"b.mkv", *flash(n=12), "mpeg4", "flac")
    monkeypatch.setattr(video_room, "MOST_PIXELS", 64*64)
    clip = read_clip(tmp_path/"b.mkv", detector("none"), OPTIONS)
    assert clip.status == "decode_error" and "80x64" in clip.reason and clip.face is None and MOST_PIXELS < 40e6


def test_faces_from_the_side_are_not_followed():
    front = faces_of([[0,0,100,100]])
    turn = lambda far: front.points + np.array([[0,0], [-25*far,0], [25*far,0], [5*far,0], [-15*far,0]])
    assert [bool(seen_well(faces_of(front.boxes, points=turn(f)))[0]) for f in (0, .5, 1.2)] == [True, True, False]
    assert len(seen_well(faces_of([]))) == 0


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100, 48_000])
def test_sound_in_pieces_is_the_sound_as_a_whole(rate):
    x = np.random.default_rng(0).normal(0, .1, 3*rate + 77).astype(np.float32)
    pieces = np.split(x, np.sort(np.random.default_rng(1).integers(0, len(x), 200)))
    a, b = np.concatenate(list(resampled(pieces, rate))), resample(x, rate)
    assert len(a) == len(b) and np.abs(a - b).max() < 1e-5


def test_crops_follow_the_square_between_pixels():
    y,x = np.mgrid[:80,:80].astype(float)
    ramp = np.stack([2*x, 2*y, x+y], -1)
    for corner,side in [((10.,20.), 24.), ((10.3,20.6), 24.), ((7.25,3.5), 50.)]:
        crop = cut_squares([ramp.round().astype(np.uint8)], np.array([[*corner, corner[0]+side, corner[1]+side]]), 16)[0]
        at = (np.arange(16) + .5)*side/16 - .5
        assert abs(crop[...,0] - 2*(corner[0] + at)[None]).max() < 1.6 and abs(crop[...,1] - 2*(corner[1] + at)[:,None]).max() < 1.6
    outside = cut_squares([ramp.round().astype(np.uint8)]*2, np.array([[-300.,-300,-200,-200], [500,500,600,600]]), 8)
    assert outside.shape == (2,8,8,3)


def test_the_package_with_the_weights_is_not_imported(mtcnn):
    assert "mtcnn" not in sys.modules and "tensorflow" not in sys.modules


def test_other_weights_are_refused_before_they_are_opened(tmp_path, monkeypatch):
    fake = tmp_path/"mtcnn"/"assets"/"weights"
    fake.mkdir(parents=True); (tmp_path/"mtcnn"/"__init__.py").touch()
    (fake/"pnet.lz4").write_bytes(b"cos\nsystem\n(S'false'\ntR.")  # a pickle that would run a command
    monkeypatch.setattr(faces_room, "find_spec", lambda name: types.SimpleNamespace(submodule_search_locations=[str(tmp_path/"mtcnn")]))
    with pytest.raises(ImportError, match="not the file of mtcnn 1.0.0"): faces_room.released_weights("pnet")
    monkeypatch.setattr(faces_room, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install mtcnn"): faces_room.released_weights("pnet")


def test_a_home_that_cannot_be_written_does_no_harm(tmp_path, monkeypatch):
    (tmp_path/"file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path/"file"))
    assert faces_room.digest(faces_room.mtcnn_weights()) == faces_room.WEIGHTS


def test_batches_do_not_change_what_is_found(mtcnn):
    if not REAL.is_dir(): pytest.skip(f"{REAL} is absent")
    frames = np.stack([f for t,f in read_frames(REAL/"web_240p_mono.mp4") if t % 10 == 5])
    whole = mtcnn.detect(frames)
    for f,one in zip(whole, (mtcnn.detect(x[None])[0] for x in frames)):
        assert len(f.boxes) == len(one.boxes) and np.allclose(f.boxes, one.boxes, atol=.01)


def test_tiny_and_odd_pictures_have_no_faces(mtcnn):
    for shape in [(1,1,1,3), (2,11,300,3), (1,37,41,3), (3,64,13,3)]:
        assert [len(f.boxes) for f in mtcnn.detect(np.zeros(shape, np.uint8))] == [0]*shape[0]


def test_yunet_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match="opencv-python-headless"): detector("yunet:a.onnx")
    rows = np.array([[10,20,50,60, 20,35, 45,35, 32,50, 22,65, 44,65, .9], [0,0,9,9, 1,1,2,2,3,3,4,4,5,5, .95]], np.float32)
    net = types.SimpleNamespace(setInputSize=lambda size: None, detect=lambda bgr: (1, rows))
    cv2 = types.SimpleNamespace(setNumThreads=lambda n: None, FaceDetectorYN=types.SimpleNamespace(create=lambda *a: net), resize=lambda x, size, interpolation: x[::2,::2], INTER_AREA=3)
    monkeypatch.setitem(sys.modules, "cv2", cv2)
    with pytest.raises(FileNotFoundError, match="model zoo"): detector(f"yunet:{tmp_path/'a.onnx'}")
    (tmp_path/"a.onnx").write_bytes(b"onnx")
    found = detector(f"yunet:{tmp_path/'a.onnx'}").detect(np.zeros((2,720,1280,3), np.uint8))  # halved: 640 x 360
    assert len(found) == 2 and np.allclose(found[0].boxes, [[20,40,120,160]]) and np.allclose(found[0].points[0,0], [40,70])


def test_boxes_with_points(tmp_path):
    points = ",".join(f"px{i},py{i}" for i in range(5))
    (tmp_path/"a.csv").write_text(f"path,tick,x0,y0,x1,y1,score,{points}\nc/a.mp4,0,0,0,10,10,.5,1,1,2,2,3,3,4,4,5,5\nc/a.mp4,0,20,0,30,10,.9,1,1,2,2,3,3,4,4,5,6\n")
    found, = Boxes(tmp_path/"a.csv").detect(None, "/x/c/a.mp4", [0])
    assert np.allclose(found.scores, [.9,.5]) and found.points[0,4].tolist() == [5,6] and found.boxes[0,0] == 20
    (tmp_path/"b.csv").write_text("path,x0\n")
    with pytest.raises(ValueError, match="columns"): Boxes(tmp_path/"b.csv")


def test_files_are_written_the_same_each_time_and_whole(tmp_path):
    frames, sound = flash()
    for args in [(frames, sound), (frames, None)]:
        assert write_clip(tmp_path/"a.mp4", *args).read_bytes() == write_clip(tmp_path/"b.mp4", *args).read_bytes()
    for bad in [frames[:0], frames[...,0], frames.astype(float), frames[:,:63]]:
        with pytest.raises(ValueError): write_clip(tmp_path/"c.mp4", bad, sound)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]
    assert probe(tmp_path/"a.mp4").audio_codec is None


def test_in_every_real_clip_a_face_is_found(mtcnn):
    if not REAL.is_dir(): pytest.skip(f"{REAL} is absent")
    options = TrackOptions(detect_every=10, min_face_px=32, face_px=64, mouth_px=32, max_s=2.8, min_frames=25)
    for path in sorted(REAL.iterdir()):
        clip = read_clip(path, mtcnn, options)
        if path.name.startswith("stage"): continue  # many cuts: below
        assert clip.status == "ok" and clip.n_frames >= 60, (path.name, clip.status, clip.reason)
        assert len(clip.audio) == clip.n_frames*SAMPLES_PER_FRAME and clip.face.std() > 15


def test_cuts_of_a_real_clip(mtcnn):
    if not REAL.is_dir(): pytest.skip(f"{REAL} is absent")
    clip = read_clip(REAL/"stage_cuts_many_faces_2997fps.mp4", mtcnn, TrackOptions(5, 32, 64, 32, 60., 25))
    assert (clip.start_frame, clip.n_frames) == (68, 108)  # the singer, between two cuts; later four people in the audience
