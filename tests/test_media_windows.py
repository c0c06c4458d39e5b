"Whole files into windows: one clock, every status, bounded memory, hostile files. The lessons are in nbs/13 and nbs/15."
import importlib, os, sys, tempfile, time
from functools import cache
from pathlib import Path
import av, numpy as np, pytest, torch
from cad_nb.core import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, stream
from cad_nb.forge.face import identity, render, scene
from cad_nb.forge.voice import say, speaker
from cad_nb.media.audio import MediaError, open_media
from cad_nb.media.encode import write_clip
from cad_nb.media.faces import detector, faces_of
from cad_nb.media.track import TrackOptions, read_clip
from cad_nb.media.video import read_frames, whole_pictures
from cad_nb.media.windows import STATUSES, follows, read_windows, speechlike
from conftest import ROOT

REAL = ROOT.parent/"shared"/"real_clips"
OPTIONS = TrackOptions(detect_every=5, min_face_px=16, face_px=32, mouth_px=16, max_s=600., min_frames=20)
T = 20


def benchmark(name):
    "A script of benchmarks/, as a module."
    sys.path.insert(0, str(ROOT/"benchmarks"))
    try: return importlib.import_module(name)
    finally: sys.path.pop(0)


clock = benchmark("clock")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    n = torch.get_num_threads(); torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


@cache
def spoken(): return say(speaker(stream(0, "words")), 8, stream(0, "said")).samples

def syllables(n): return np.resize(spoken(), n*SAMPLES_PER_FRAME)

def beating(n, hz=3.): s = np.arange(n*SAMPLES_PER_FRAME)/SAMPLE_RATE; return (.3*np.sin(2*np.pi*200*s)*np.abs(np.sin(s*hz*np.pi))).astype(np.float32)


def noise(n, h=64, w=64, seed=0):
    "One picture with grain, again and again."
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 200, (h, w, 3)) + rng.integers(0, 12, (n, h, w, 1))).astype(np.uint8)


def read(path, faces=None, options=OPTIONS, frames=T, **kw):
    r = read_windows(path, faces or detector("none"), options, frames, **kw)
    windows = list(r)
    for w in windows:
        assert w.status in STATUSES and w.n_frames > 0 and (w.reason or w.status == "ok")
        for x,shape in ((w.face, (frames,32,32,3)), (w.mouth, (frames,16,16)), (w.audio, (frames*SAMPLES_PER_FRAME,)), (w.boxes, (frames,4)), (w.mouth_boxes, (frames,4))): assert x is None or x.shape == shape
        if w.status == "ok": assert w.face is not None and w.audio is not None and w.track >= 0 and w.thumb is not None
    starts = [w.start_frame for w in windows]
    assert starts == sorted(starts) and r.status in STATUSES and 0 <= r.coverage <= 1 and (r.reason or r.status == "ok")
    return r, windows


# one clock -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", clock.CASES)
def test_flash_and_click_stay_together(tmp_path, name):
    try: path, wanted, late = clock.write(tmp_path, name)
    except av.FFmpegError as e: pytest.skip(f"this build of FFmpeg cannot write it: {e}")
    clip, flashes, clicks = clock.measured(path, late)
    apart, off = clock.distances(flashes, clicks, wanted)
    assert ("interlaced" in clip.reason) == name.startswith("interlaced")
    assert apart < 1/FPS and off <= 1/FPS + 1e-6, f"{apart*1000:.1f} ms apart, {off*1000:.1f} ms off"


def woven(path, n=20):
    "A file in which a bar moves by two pixels from each half picture to the next, the lower lines first; and where the bar is at a time."
    bar = lambda t: np.pad(np.full((48,16), 220, np.uint8), ((8, 8), (round(8 + 4*t), 128 - 16 - round(8 + 4*t))), constant_values=60)
    with av.open(str(path), "w") as out:
        v = out.add_stream("libx264", rate=25, options={"crf": "10", "x264-params": "interlaced=1:threads=1"})
        v.width, v.height, v.pix_fmt = 128, 64, "yuv420p"
        for t in range(n):
            x = bar(t); x[::2] = bar(t + .5)[::2]
            frame = av.VideoFrame.from_ndarray(np.concatenate([x, np.full((32,128), 128, np.uint8)]), format="yuv420p"); frame.pts = t
            out.mux(v.encode(frame))
        out.mux(v.encode())
    return bar


def test_of_two_instants_in_one_picture_the_first_is_kept(tmp_path):
    "No picture is lost, times stay, no comb is left, and the bar is where it was at the time of the picture."
    bar = woven(tmp_path/"a.mp4")
    frames = read_frames(tmp_path/"a.mp4")
    seen = [x[...,1].astype(float) for _,x in frames]
    comb = lambda x: np.abs(x[1:-1] - (x[:-2] + x[2:])/2).mean()
    assert len(seen) == 20 and frames.interlaced and frames.tally.bad_share == 0
    where = lambda x: (np.arange(128)*(x[20:44] > 140).mean(0)).sum()/max((x[20:44] > 140).mean(0).sum(), 1e-9)
    for t in range(2, 18): assert comb(seen[t]) < 3*comb(bar(t).astype(float)) + .3 and abs(where(seen[t]) - where(bar(t))) < 1


def test_pictures_that_are_whole_pass_untouched(tmp_path):
    with av.open(str(write_clip(tmp_path/"a.mp4", noise(10), None))) as c: frames = list(c.decode(video=0))
    assert all(a is b for a,b in zip(frames, whole_pictures(frames), strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_file_that_may_not_be_read_is_named_as_such():
    with tempfile.TemporaryDirectory() as d:
        os.chmod(d, 0o755); path = write_clip(Path(d)/"secret.mp4", noise(5), None); os.chmod(path, 0)
        pid = os.fork()
        if not pid:  # as nobody in particular: root may read everything
            try:
                if os.geteuid() == 0: os.setuid(65534)
                open_media(path)
            except MediaError as e: os._exit(42 if e.status == "missing" and "may not be read" in str(e) else 1)
            finally: os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42


@pytest.mark.parametrize("name", ["29.97 fps", "variable rate, mkv", "sound 0.4 s late, mkv", "mpeg2, ac3, ts"])
def test_windows_are_on_the_same_clock_as_clips(tmp_path, name):
    path, _, _ = clock.write(tmp_path, name)
    options = TrackOptions(**{**vars(clock.OPTIONS), "face_px": 32, "mouth_px": 16})
    clip, (_, windows) = read_clip(path, detector("none"), options), read(path, options=options)
    full = [w for w in windows if w.face is not None and w.audio is not None]
    assert len(full) >= 3
    for w in full:
        at = w.start_frame - clip.start_frame
        assert np.array_equal(w.face, clip.face[at:at+T]) and np.array_equal(w.mouth, clip.mouth[at:at+T]) and np.allclose(w.boxes, clip.boxes[at:at+T])
        assert np.allclose(w.audio, clip.audio[at*SAMPLES_PER_FRAME:(at+T)*SAMPLES_PER_FRAME], atol=1e-5)


# what can be judged --------------------------------------------------------------------------------------------------

def test_windows_cover_a_whole_file_and_may_overlap(tmp_path):
    path = write_clip(tmp_path/"a.mp4", noise(75), syllables(75))
    r, windows = read(path)
    assert [w.start_frame for w in windows] == [0, 20, 40, 55] and r.coverage == 1 and r.status == "ok" and r.n_ticks == 75
    assert [w.start_frame for w in read(path, step=10)[1]] == [0, 10, 20, 30, 40, 50, 55]


def test_missing_halves(tmp_path):
    film = read(write_clip(tmp_path/"film.mp4", noise(50), None))
    assert film[0].status == "no_audio" and {w.status for w in film[1]} == {"no_audio"} and all(w.face is not None and w.audio is None for w in film[1])
    hush = read(write_clip(tmp_path/"hush.mp4", noise(50), syllables(50)*1e-4))
    assert hush[0].status == "no_speech" and all(w.face is not None and w.audio is not None for w in hush[1])
    wall = read(write_clip(tmp_path/"wall.mp4", noise(50), syllables(50)), faces=Nobody())
    assert wall[0].status == "no_face" and any(w.audio is not None for w in wall[1]) and all(w.face is None for w in wall[1])
    early = read(write_clip(tmp_path/"early.mp4", noise(75), syllables(45)))
    assert [w.status for w in early[1]][:2] == ["ok", "ok"] and early[1][-1].status == "no_audio" and "sound ends" in early[1][-1].reason and .5 < early[0].coverage < .7
    long = read(write_clip(tmp_path/"long.mp4", noise(40), syllables(100)))
    assert [w.status for w in long[1]].count("no_video") >= 2 and abs(long[0].duration_s - 4) < .1 and abs(long[0].coverage - .4) < .05


class Nobody:
    name, fingerprint, long_side_px = "nobody", "", None
    def detect(self, frames, path=None, ticks=None): return [faces_of([]) for _ in frames]


class Row(Nobody):
    "So many faces beside each other."
    def __init__(self, n, side=20): self.boxes = [[5 + 30*i, 10, 5 + 30*i + side, 10 + side] for i in range(n)]
    def detect(self, frames, path=None, ticks=None): return [faces_of(self.boxes) for _ in frames]


def test_small_faces_and_crowds(tmp_path):
    path = write_clip(tmp_path/"a.mp4", noise(50, w=192), syllables(50))
    small, crowd = read(path, faces=Row(1, side=12)), read(path, faces=Row(6))
    assert {w.status for w in small[1]} == {"face_too_small"} and "12 pixels" in small[1][0].reason
    assert {w.status for w in crowd[1]} == {"many_faces"} and crowd[0].status == "many_faces"
    assert read(path, faces=Row(3))[0].status == "ok"


def test_the_one_whose_mouth_moves_is_chosen(tmp_path):
    frames = noise(60, w=192)
    for t in range(60): frames[t, 23:27, 42:53] = 40 + 180*(t % 2)  # where the mouth of the second of three would be
    r, windows = read(write_clip(tmp_path/"a.mp4", frames, syllables(60), crf=18), faces=Row(3))
    assert {w.track for w in windows} == {1} and [t.chosen for t in r.tracks] == [False, True, False]
    assert r.tracks[1].moves > 1.5*r.tracks[0].moves and "mouth" in r.tracks[1].reason and "another" in r.tracks[0].reason
    assert r.tracks[1].margin > 0 > r.tracks[0].margin


@pytest.mark.parametrize("late", [0, 8])
def test_of_two_who_talk_the_one_who_is_heard_is_chosen(tmp_path, late):
    "Both mouths move to words; the sound is that of one of them, in step or a third of a second late."
    pairs = benchmark("speaker")
    found = [pairs.chosen(pairs.write(tmp_path/"pair.mp4", seed, "talks", late=late), pairs.detector("mtcnn", min_face_px=32)) for seed in range(3)]
    assert [side for side,_ in found] == [pairs.side_of(seed, "talks") for seed in range(3)] and all(t.follows > .4 and t.margin > 0 for _,t in found)


def instruments(n):
    "What is no speech although it comes and goes: one beating tone, plucked strings, struck chords, drums, noise in waves."
    rng, s, note = np.random.default_rng(0), np.arange(n*SAMPLES_PER_FRAME)/SAMPLE_RATE, SAMPLE_RATE//4
    at, k = s % .25, (s/.25).astype(int)
    pitch = 220*2**(rng.integers(-12, 13, k.max() + 1)/12)[k]
    pluck = lambda ratio: sum(np.sin(2*np.pi*pitch*ratio*h*at)*np.exp(-(4 + h)*at)/h for h in range(1, 9))
    drum = np.where(k % 2, rng.normal(size=len(s))*np.exp(-40*at)*.5, np.sin(2*np.pi*60*at)*np.exp(-20*at))
    parts = dict(beat=beating(n), pluck=pluck(1), chords=pluck(1) + pluck(1.26) + pluck(1.5), drums=drum, waves=rng.normal(size=len(s))*(1 + np.sin(2*np.pi*4*s))/2)
    return {name: (.3*x/np.abs(x).max()).astype(np.float32) for name,x in (parts | dict(band=parts["chords"] + drum)).items()}


@pytest.mark.parametrize("name", instruments(1))
def test_instruments_do_not_speak(name): assert not any(speechlike(instruments(144)[name][at:at + 36*SAMPLES_PER_FRAME]) for at in range(0, 109*SAMPLES_PER_FRAME, 36*SAMPLES_PER_FRAME))


def test_voices_speak_also_in_noise_and_over_music():
    rng, band = np.random.default_rng(1), instruments(72)["band"]
    for i in range(8):
        x = say(speaker(stream(i, "voice")), 72/FPS, stream(i, "words")).samples
        rms = lambda y: np.sqrt((y**2).mean())
        for beside in (0*x, rng.normal(0, rms(x)/10**.5, len(x)).astype(np.float32), band*rms(x)/rms(band)/10**.25):     # alone; noise 10 dB below; music 5 dB below
            assert sum(speechlike((x + beside)[at:at + 36*SAMPLES_PER_FRAME]) for at in (0, 36*SAMPLES_PER_FRAME)) == 2


def test_follows_finds_the_rhythm_whatever_the_offset_and_only_the_rhythm():
    rng, sound, other = np.random.default_rng(0), syllables(108), say(speaker(stream(1, "words")), 108/FPS, stream(1, "said"))
    mouths = np.zeros((108, 16, 16)) + 120 + rng.normal(0, 4, (108, 16, 16))
    voice = say(speaker(stream(0, "words")), 8, stream(0, "said"))
    spoke, foreign = ((mouths - 80*m[:108,:1,None]*(abs(np.arange(16) - 8) < 3)[:,None]).clip(0, 255).astype(np.uint8) for m in (voice.mouth, other.mouth))
    fits = [follows(spoke, np.roll(sound, k*SAMPLES_PER_FRAME)) for k in (0, 9, -9)]
    assert min(fits) > follows(foreign, sound) + .05 and max(fits) - min(fits) < .15


def test_a_face_of_forty_pixels_in_a_large_picture():
    rng = stream(0, "small face")
    head = render(identity(rng), scene(rng, 30), np.zeros((30,3), np.float32), size=64).frames
    picture = np.full((720,1280,3), 90, np.uint8)
    from cad_nb.media.track import Follower
    from cad_nb.media.video import Picture
    f = Follower(detector("mtcnn", min_face_px=32), OPTIONS)
    for t,h in enumerate(head): picture[400:464, 900:964] = h; f.see(t, Picture(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    f.end()
    assert [(t.start, t.stop) for t in f.tracks] == [(0, 30)] and 30 < f.tracks[0].side < 50


def test_damage_is_told_where_it_is(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (80,64,64,3), dtype=np.uint8)
    data = bytearray(write_clip(tmp_path/"a.mp4", frames, syllables(80)).read_bytes())
    with av.open(str(tmp_path/"a.mp4")) as f: pictures = [(p.pos, p.size) for p in f.demux(video=0) if p.size]
    for at, size in pictures[40:60]: data[at+size//2:at+size//2+60] = bytes(60)
    (tmp_path/"b.mp4").write_bytes(data)
    _, windows = read(tmp_path/"b.mp4")
    assert windows[0].status == "ok" and any(w.status == "corrupt" and "damaged" in w.reason for w in windows)


@pytest.mark.parametrize("sound,speech", [(0*syllables(36), False), (.1*np.sin(np.arange(36*640)/9).astype(np.float32), False), (syllables(36), True), (syllables(36)/3000, False),
                                          (np.random.default_rng(0).normal(0, .05, 36*640).astype(np.float32), False)])
def test_what_counts_as_speech(sound, speech): assert speechlike(sound) == speech


# limits --------------------------------------------------------------------------------------------------------------

def test_memory_does_not_grow_with_duration(tmp_path):
    def held(n):
        r, most = read_windows(write_clip(tmp_path/f"{n}.mp4", noise(25, h=48, w=48)[np.arange(n) % 25], syllables(n)), detector("none"), OPTIONS, T), []
        for _ in r: most.append(r.walk.follower.held_bytes + r.walk.heard.samples.nbytes + sum(x.nbytes for _,x in r.walk.trail.thumbs))
        return max(most)
    assert held(1500) <= held(300) < 2**20


def test_what_is_too_long_is_told(tmp_path):
    path = write_clip(tmp_path/"a.mp4", noise(100), syllables(100))
    r, windows = read(path, options=TrackOptions(**{**vars(OPTIONS), "max_s": 2.}))
    assert windows[-1].status == "too_long" and windows[-1].start_frame == 50 and windows[-1].n_frames == 50 and abs(r.coverage - .5) < .02
    t = time.monotonic(); late = read(path, limit_s=0.)
    assert late[0].status == "too_long" and not late[0].judged and time.monotonic() - t < 5


def test_a_header_that_promises_ten_hours(tmp_path):
    path = write_clip(tmp_path/"a.mp4", noise(50), syllables(50))
    for mark,at in ((b"mvhd", 16), (b"tkhd", 20), (b"mdhd", 16)): clock.patched(path, mark, at, lambda old: min(2**31 - 1, old*18_000))
    r, windows = read(path)
    assert r.status == "ok" and r.coverage > .9 and abs(r.duration_s - 2) < .1


@pytest.mark.parametrize("jump", [100_000, 2**31 - 1])
def test_time_stamps_that_leap(tmp_path, jump):
    with av.open(str(tmp_path/"a.mkv"), "w") as out:
        v, a = out.add_stream("mjpeg", rate=25), out.add_stream("pcm_s16le", rate=SAMPLE_RATE, layout="mono")
        v.width = v.height = 64; v.pix_fmt = "yuvj420p"
        for i,x in enumerate(noise(50)):
            frame = av.VideoFrame.from_ndarray(x, format="rgb24"); frame.pts = i if i < 25 else i + jump//40
            out.mux(v.encode(frame))
            s = av.AudioFrame.from_ndarray(np.full((1,640), 99*i, np.int16), format="s16", layout="mono"); s.sample_rate, s.pts = SAMPLE_RATE, i*640 if i < 25 else i*640 + jump*16
            out.mux(a.encode(s))
        out.mux(v.encode()); out.mux(a.encode())
    t = time.monotonic()
    r, windows = read(tmp_path/"a.mkv", options=TrackOptions(**{**vars(OPTIONS), "max_s": 60.}), limit_s=5)
    assert time.monotonic() - t < 8 and r.status in STATUSES


def test_not_files(tmp_path):
    os.mkfifo(tmp_path/"pipe.mp4")
    (tmp_path/"empty.mp4").touch(); (tmp_path/"folder.mp4").mkdir()
    (tmp_path/"list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n")
    wanted = {"pipe.mp4": "not_media", "empty.mp4": "not_media", "folder.mp4": "not_media", "list.m3u8": "not_media", "nowhere.mp4": "missing"}
    assert {n: read(tmp_path/n)[0].status for n in wanted} == wanted


def test_sixty_damaged_files_end_as_a_status(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT/"benchmarks"))  # for the process that reads
    fuzz = benchmark("fuzz_media")
    done = fuzz.run(range(60), seed=1)
    assert len(done) == 60 and not [r for r in done if fuzz.bad(r[1])], [r for r in done if fuzz.bad(r[1])]
    assert len({status for _,status,_,_ in done}) > 3 and max(mib for *_,mib in done) < 1500


# real clips ----------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def real():
    if not REAL.is_dir(): pytest.skip(f"{REAL} is absent")
    mtcnn, options = detector("mtcnn", min_face_px=32), TrackOptions(5, 32, 32, 16, 60., 25)
    return {p.name: read(p, mtcnn, options, 25) for p in sorted(REAL.iterdir())}


def test_real_clips_can_be_judged(real):
    for name,(r, windows) in real.items():
        assert r.status == "ok" and r.coverage > (.6 if name.startswith("stage") else .9), (name, r.status, r.coverage)
        assert all(t.chosen or t.reason for t in r.tracks)


def test_tracks_of_the_stage_clip(real):
    r, windows = real["stage_cuts_many_faces_2997fps.mp4"]
    assert r.walk.follower.shots == [0, 17, 68, 176]                                            # looked at: three cuts
    singer = max((t for t in r.tracks if t.shot == 2), key=lambda t: t.end_s - t.start_s)
    assert (round(singer.start_s*FPS), round(singer.end_s*FPS)) == (68, 176) and singer.chosen
    assert sum(t.end_s - t.start_s > 1 for t in r.tracks if t.shot == 3) >= 2              # faces in the audience
    assert all(w.start_frame >= 68 or w.status != "ok" for w in windows)                   # before: a turned head, and shots that are too short
