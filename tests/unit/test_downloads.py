"""Downloads from a hub that drops connections, serves wrong hashes, refuses, and vanishes."""

import json
from pathlib import Path

import pytest

from isengard.errors import Conflict, DiskFull, DownloadFailed, HubRefused, HubUnreachable, JobCancelled
from isengard.store import manifest
from isengard.store.download import MAX_BREAKS, Downloader, Source, come, locked
from isengard.store.hub import Hub
from tests.fake_hub import COMMIT, FakeHub

INDEX = {
    "_class_name": "FluxPipeline",
    "image_encoder": [None, None],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "text_encoder": ["transformers", "CLIPTextModel"],
}
LARGE = "transformer/diffusion_pytorch_model-00001-of-00002.safetensors"
NEEDED = {
    "model_index.json": json.dumps(INDEX).encode(),
    "scheduler/scheduler_config.json": b"{}",
    "tokenizer/vocab.json": b"{}",
    "tokenizer/merges.txt": b"a b",
    "tokenizer/chat_template.jinja": b"",
    "transformer/config.json": b"{}",
    "transformer/diffusion_pytorch_model.safetensors.index.json": b'{"weight_map": {}}',
    LARGE: bytes(range(256)) * 1200,
    "transformer/diffusion_pytorch_model-00002-of-00002.safetensors": b"two" * 500,
    "text_encoder/config.json": b"{}",
    "text_encoder/model.safetensors": b"clip" * 500,
}
NOT_NEEDED = {
    "README.md": b"#",
    "tiny.safetensors": b"all in one",
    "ae.safetensors": b"vae",
    "sample.png": b"png",
    "transformer/diffusion_pytorch_model.safetensors": b"the same in one file",
    "transformer/diffusion_pytorch_model.fp16.safetensors": b"half",
    "transformer/diffusion_pytorch_model.fp16.safetensors.index.json": b"{}",
    "transformer/deep/config.json": b"{}",
    "text_encoder/model.fp16.safetensors": b"half",
    "text_encoder/pytorch_model.bin": b"pickle",
    "text_encoder/model.onnx": b"onnx",
    "text_encoder/flax_model.msgpack": b"flax",
    "safety_checker/model.safetensors": b"not in the index",
}


@pytest.fixture
def hub():
    hub = FakeHub()
    hub.repositories["acme/tiny"] = NEEDED | NOT_NEEDED
    yield hub
    hub.close()


class Told(list):
    """Collects reports; ``stop_at``: raise when so many bytes have come."""

    stop_at = None

    def __call__(self, progress):
        self.append(progress)
        if self.stop_at is not None and progress.done_bytes >= self.stop_at:
            raise JobCancelled


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def naps():
    return []


@pytest.fixture
def downloader(hub, naps):
    ticks = iter(range(10**9))
    return Downloader(
        hub=Hub(endpoint=hub.url, token=lambda: None), sleep=naps.append, clock=lambda: float(next(ticks))
    )


@pytest.fixture
def source(tmp_path):
    return Source("acme/tiny", tmp_path / "models" / "tiny")


def files_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != manifest.NAME
    }


def test_only_what_a_pipeline_needs_is_downloaded(downloader, source, told):
    downloader.download([source], told)
    assert files_of(source.folder) == NEEDED
    assert manifest.read(source.folder).commit == COMMIT
    assert manifest.lacking(source.folder) == ()


def test_the_progress_ends_at_the_total_and_has_speed_and_remaining_time(downloader, source, told):
    downloader.download([source], told)
    total = sum(map(len, NEEDED.values()))
    last = told[-1]
    assert (last.done_bytes, last.total_bytes, last.message) == (total, total, "complete")
    assert any(each.bytes_per_s and each.eta_s for each in told)
    assert [each.done_bytes for each in told] == sorted(each.done_bytes for each in told)


def test_after_a_break_only_the_rest_is_fetched(downloader, source, hub, told, naps):
    hub.drops[LARGE] = [100_000, 50_000]
    downloader.download([source], told)
    assert hub.starts(LARGE) == [0, 100_000, 150_000]
    assert files_of(source.folder) == NEEDED
    assert naps == []  # each attempt has brought something


def test_a_server_without_ranges_costs_time_and_nothing_else(downloader, source, hub, told):
    hub.drops[LARGE], hub.knows_ranges = [100_000], False
    downloader.download([source], told)
    assert files_of(source.folder)[LARGE] == NEEDED[LARGE]


def test_a_cancelled_download_goes_on_where_it_was(downloader, source, hub, told):
    told.stop_at = 120_000
    with pytest.raises(JobCancelled):
        downloader.download([source], told)
    done, total = come(source.folder)
    assert 120_000 <= done < total
    assert LARGE in manifest.lacking(source.folder)
    told.stop_at = None
    downloader.download([source], told)
    assert hub.starts(LARGE)[1] >= 100_000
    assert files_of(source.folder) == NEEDED


def test_a_connection_that_breaks_again_and_again_is_given_up_with_what_is_here(
    downloader, source, hub, told, naps
):
    hub.drops[LARGE] = [100_000, *[0] * MAX_BREAKS]
    with pytest.raises(DownloadFailed, match=r"broke 6 times in a row at transformer/.* are here and stay"):
        downloader.download([source], told)
    assert naps == [1, 2, 4, 8, 16]
    downloader.download([source], told)
    assert hub.starts(LARGE)[-1] == 100_000


def test_errors_of_the_server_on_the_way_are_tried_again(downloader, source, hub, told, naps):
    downloader._promised = lambda source, ask=downloader._promised: (
        ask(source),
        hub.fails.extend([503, 429]),
    )[0]
    downloader.download([source], told)
    assert (naps, files_of(source.folder)) == ([1, 2], NEEDED)


@pytest.mark.parametrize("path", [LARGE, "transformer/config.json"])
def test_a_file_with_a_wrong_hash_is_thrown_away_and_named(downloader, source, hub, told, path):
    hub.wrong = {path}
    with pytest.raises(DownloadFailed, match=f"{path} came with a wrong hash and was thrown away"):
        downloader.download([source], told)
    assert not list(source.folder.rglob(f"{Path(path).name}*"))
    hub.wrong = set()
    downloader.download([source], told)
    assert files_of(source.folder) == NEEDED


def test_a_file_that_changed_on_the_hub_is_not_continued(downloader, source, hub, told):
    told.stop_at = 100_000
    with pytest.raises(JobCancelled):
        downloader.download([source], told)
    changed = NEEDED[LARGE][::-1]
    hub.repositories["acme/tiny"] = NEEDED | {LARGE: changed}
    told.stop_at = None
    downloader.download([source], told)
    assert files_of(source.folder) == NEEDED | {LARGE: changed}


def test_a_finished_file_that_changed_on_the_hub_is_fetched_again(downloader, source, hub, told):
    downloader.download([source], told)
    changed = NEEDED[LARGE][::-1]
    hub.repositories["acme/tiny"] = NEEDED | {LARGE: changed}
    downloader.download([source], told)
    assert files_of(source.folder)[LARGE] == changed


def test_files_that_are_here_and_right_are_not_fetched_again(downloader, source, hub, told):
    for path, content in NEEDED.items():
        (source.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (source.folder / path).write_bytes(
            content if path != "text_encoder/model.safetensors" else b"X" * 2000
        )
    downloader.download([source], told)
    assert {path for path, _ in hub.asked} == {"model_index.json", "text_encoder/model.safetensors"}
    assert files_of(source.folder) == NEEDED


def test_a_partial_file_that_is_too_long_is_begun_anew(downloader, source, hub, told):
    told.stop_at = 100_000
    with pytest.raises(JobCancelled):
        downloader.download([source], told)
    (partial,) = source.folder.rglob("*.incomplete")
    partial.write_bytes(b"x" * (len(NEEDED[LARGE]) + 1))
    told.stop_at = None
    downloader.download([source], told)
    assert hub.starts(LARGE)[-1] == 0


def test_too_small_a_disk_is_refused_before_the_first_byte(downloader, source, hub, told):
    downloader._free = lambda path: 1_000_000_000
    with pytest.raises(DiskFull, match=r"needs 0\.0 GB, and 1 GB should stay free, but .* has 1\.0 GB"):
        downloader.download([source], told)
    assert not hub.starts(LARGE)
    downloader._free = lambda path: 2_000_000_000
    downloader.download([source], told)
    downloader._free = lambda path: 0
    downloader.download([source], told)  # nothing is left to fetch


def test_a_disk_that_fills_on_the_way_is_named_and_what_is_here_stays(downloader, source, hub, told):
    told.stop_at = 1
    with pytest.raises(JobCancelled):
        downloader.download([source], told)
    for partial in source.folder.rglob("*.incomplete"):
        partial.unlink()
    described = next(file for file in manifest.read(source.folder).files if file.path == LARGE)
    full = source.folder / f"{LARGE}.{described.sha256[:12]}.incomplete"
    full.parent.mkdir(exist_ok=True)
    full.symlink_to("/dev/full")
    told.stop_at = None
    with pytest.raises(DiskFull, match=r"no space left on the disk for .*incomplete"):
        downloader.download([source], told)
    full.unlink()
    downloader.download([source], told)
    assert files_of(source.folder) == NEEDED


def test_a_hub_that_vanishes_is_named_and_what_is_here_stays(downloader, source, hub, told):
    hub.drops[LARGE] = [100_000]
    downloader._sleep = lambda seconds: None
    told.stop_at = 100_000
    with pytest.raises(JobCancelled):
        downloader.download([source], told)
    hub.close()
    told.stop_at = None
    with pytest.raises(
        HubUnreachable, match=r"cannot be reached .* what is on this machine works without it"
    ):
        downloader.download([source], told)
    assert come(source.folder)[0] >= 100_000


def test_one_file_of_a_repository_can_be_asked_for(downloader, hub, tmp_path, told):
    hub.repositories["acme/adapter"] = {"pytorch_lora_weights.safetensors": b"lora", "README.md": b"#"}
    source = Source("acme/adapter", tmp_path / "adapter", only="pytorch_lora_weights.safetensors")
    downloader.download([source], told)
    assert files_of(source.folder) == {"pytorch_lora_weights.safetensors": b"lora"}


def test_weights_that_come_from_elsewhere_are_left_out(downloader, tmp_path, told):
    source = Source("acme/tiny", tmp_path / "tiny", without_weights=("transformer",))
    downloader.download([source], told)
    assert not list((source.folder / "transformer").glob("*.safetensors"))
    assert (source.folder / "transformer" / "config.json").exists()
    assert (source.folder / "text_encoder" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"flux.safetensors": b"x"}, "holds no model_index.json: it is not in diffusers' layout"),
        ({"model_index.json": b"["}, "cannot be read"),
        (
            {"model_index.json": json.dumps({"unet": ["diffusers", "U"]}).encode(), "unet/model.bin": b"x"},
            "unet comes without safetensors",
        ),
    ],
)
def test_a_repository_that_is_no_pipeline_is_refused(downloader, hub, source, told, files, words):
    hub.repositories["acme/tiny"] = files
    with pytest.raises(DownloadFailed, match=words):
        downloader.download([source], told)


def test_a_missing_file_of_a_repository_is_named(downloader, source, told):
    with pytest.raises(DownloadFailed, match=r"acme/tiny holds no lora\.safetensors"):
        downloader.download([Source("acme/tiny", source.folder, only="lora.safetensors")], told)


def test_two_downloads_of_one_model_do_not_meet(downloader, source, told):
    with (
        locked([source.folder]),
        pytest.raises(Conflict, match="tiny is being downloaded or checked by another process"),
    ):
        downloader.download([source], told)
    downloader.download([source], told)


# What the hub refuses


def asking(hub, token):
    return Downloader(hub=Hub(endpoint=hub.url, token=lambda: token))


def test_a_gated_model_without_a_token_asks_for_one(hub, source, told):
    hub.gated = {"acme/tiny"}
    with pytest.raises(HubRefused, match=r"acme/tiny wants a token.*models token"):
        asking(hub, None).download([source], told)


def test_a_wrong_token_is_told_from_none(hub, source, told):
    hub.gated = {"acme/tiny"}
    with pytest.raises(HubRefused, match="does not know the token for acme/tiny"):
        asking(hub, "hf_wrongwrong").download([source], told)


def test_a_token_whose_owner_has_not_accepted_the_licence_gets_the_page_to_do_so(hub, source, told):
    hub.gated, hub.tokens = {"acme/tiny"}, {"hf_known": set()}
    with pytest.raises(HubRefused, match=f"accept the licence at {hub.url}/acme/tiny"):
        asking(hub, "hf_known").download([source], told)


def test_the_token_is_not_repeated_to_the_server_of_the_files(hub, source, told):
    hub.gated, hub.tokens = {"acme/tiny"}, {"hf_known": {"acme/tiny"}}
    asking(hub, "hf_known").download([source], told)
    assert set(hub.bearers) == {""}


def test_a_repository_that_is_not_there_is_named(hub, told, tmp_path):
    hub.tokens = {"hf_known": set()}
    with pytest.raises(HubRefused, match=f"{hub.url}/acme/gone does not exist"):
        asking(hub, "hf_known").download([Source("acme/gone", tmp_path / "gone")], told)


def test_offline_asks_nothing_and_says_why(hub, source, told):
    downloader = Downloader(hub=Hub(endpoint=hub.url, token=lambda: None, offline=True))
    with pytest.raises(HubUnreachable, match="HF_HUB_OFFLINE is set"):
        downloader.download([source], told)
    assert [each.name for each in source.folder.parent.iterdir()] == [".tiny.lock"]
