"""`prepare` on a Ray cluster: the same bytes, whoever dies and whoever joins on the way."""
import os, signal, socket, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
import numpy as np
import pytest
from cad_nb.core import SAMPLES_PER_FRAME
from cad_nb.data.manifest import as_manifest, write_manifest
from cad_nb.data.shards import PrepareParams, prepare
from cad_nb.media.encode import write_clip

pytestmark = pytest.mark.slow  # a cluster takes its time to start

N = 20  # clips; two a shard
PREPARE = PrepareParams(detector="none", detect_every=5, min_face_px=16, face_px=16, mouth_px=8, sharp=2, frames=10, trim_silence=True, shard_clips=2, windows=1, workers=1, max_s=5., file_limit_s=60., cluster="local")


def contents(out): return {str(p.relative_to(out)): p.read_bytes() for p in sorted(Path(out).rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    "Clips, of which the last two cannot be used."
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(N - 2):
        base = np.random.default_rng(i).integers(0, 256, (48, 48, 3), np.uint8)
        write_clip(folder/f"{i:02}.mp4", np.stack([np.roll(base, t, 1) for t in range(14)]), (.3*np.sin(np.arange(14*SAMPLES_PER_FRAME)*(.1 + i/100))).astype(np.float32))
    (folder/f"{N-2}.mp4").write_text("a letter"); (folder/f"{N-1}.mp4").write_bytes((folder/"00.mp4").read_bytes()[:900])
    return as_manifest([dict(corpus="toy", path=f"{i:02}.mp4", y=0) for i in range(N)]), {"toy": folder}


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    prepare(*corpus, out, PREPARE, progress=False)
    return contents(out)


@pytest.fixture(scope="module")
def cluster():
    "A head node of one core, which others can join, and the same as an address for the outside."
    pytest.importorskip("ray", reason="the extra `cluster` is not installed")
    import ray
    from ray.cluster_utils import Cluster
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1, include_dashboard=False, ray_client_server_port=port, object_store_memory=80*2**20))
    try: yield cluster, f"ray://127.0.0.1:{port}"
    finally: ray.shutdown(); cluster.shutdown()


def tasks_at_work():
    "Processes of Ray that make a shard."
    found = []
    for p in Path("/proc").glob("[0-9]*"):
        try:
            if (p/"cmdline").read_bytes().startswith(b"ray::make_shard"): found.append(int(p.name))
        except OSError: pass
    return found


def when(true, seconds=240):
    "Wait for something, and return it."
    until = time.time() + seconds
    while not (found := true()) and time.time() < until: time.sleep(.01)
    return found


RUN = """
import sys
from cad_nb.data.manifest import read_manifest
from cad_nb.data.shards import PrepareParams, prepare
manifest, folder, out, params = sys.argv[1:]
prepare(read_manifest(manifest), {"toy": folder}, out, eval(params), progress=False)
"""


@pytest.fixture
def job(corpus, cluster, tmp_path):
    "Starts the driver, from outside of the cluster or on its head node."
    df, folders = corpus
    write_manifest(tmp_path/"m.csv", df)
    env = dict(os.environ, OMP_NUM_THREADS="1", RAY_ADDRESS=cluster[0].address)
    return lambda address: subprocess.Popen([sys.executable, "-c", RUN, tmp_path/"m.csv", folders["toy"], tmp_path/"out", repr(replace(PREPARE, cluster=address))], env=env)


def test_a_worker_dies_and_a_node_joins_late(undisturbed, cluster, job, tmp_path):
    driver = job(cluster[1])
    assert when(lambda: list(tmp_path.glob("out/toy/*.json"))) and len(list(tmp_path.glob("out/toy/*.json"))) < N//2
    cluster[0].add_node(num_cpus=1, object_store_memory=80*2**20)
    victims = when(lambda: len(found := tasks_at_work()) > 1 and found)
    assert victims, "the node that joined late had nothing to do"
    os.kill(victims[0], signal.SIGKILL)
    assert len(list(tmp_path.glob("out/toy/*.json"))) < N//2, "the work was done before anybody died"
    assert driver.wait(400) == 0 and contents(tmp_path/"out") == undisturbed


def test_a_killed_driver_is_started_again(undisturbed, job, tmp_path):
    driver = job("ray")
    assert when(lambda: list(tmp_path.glob("out/toy/*.json")))
    driver.kill(); driver.wait()
    assert not (tmp_path/"out/manifest.csv").exists()
    assert job("ray").wait(400) == 0 and contents(tmp_path/"out") == undisturbed
