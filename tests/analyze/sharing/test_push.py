"""A store uploaded to a stand-in of the Hub and to an S3 server: complete, in order, resumable, refused in one line."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from analyze.cli import main
from analyze.sharing import card as card_module
from analyze.sharing import plan
from analyze.sharing.card import card, code, size_category
from analyze.sharing.plan import bucket_url, hub_url
from analyze.sharing.push import push
from capture.errors import OutliersError
from tests import builders, hub

pytestmark = pytest.mark.slow

DATASET = "hf://datasets/org/data"
NASTY = "</code><script>alert(1)</script> ![x](http://evil) | `a``b` \n<!-- end of s.zarr -->\n# big \u202e $x$ : '\""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    attributes = {"model_id": NASTY, "text_source": "fineweb-edu", "command": "outliers capture"}
    return builders.on_disk(
        tmp_path_factory.mktemp("pushed") / "s.zarr",
        builders.random_activations((2, 2, 2, 3, 4)),
        attributes=attributes,
    )


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    path = Path(shutil.copytree(sound, tmp_path / "s.zarr"))
    (path / ".views").mkdir()
    (path / ".views" / "private").write_text("mine")
    return path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[hub.Hub]:
    pytest.importorskip("huggingface_hub", "2")
    from huggingface_hub import constants

    with hub.running() as running:
        hub.connect(running, tmp_path / "cache", monkeypatch)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", hub.TOKEN)
        yield running


@pytest.fixture(autouse=True)
def _drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A figure takes longer than all the rest of a small upload."""
    draw = card_module.picture
    monkeypatch.setattr(card_module, "picture", lambda data: _PICTURES.get("") or _PICTURES.setdefault("", draw(data)))


_PICTURES: dict[str, bytes] = {}


def files(folder: Path) -> dict[str, bytes]:
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if not name.startswith(".")}


def stored(server: hub.Hub, folder: str = "s.zarr") -> dict[str, bytes | None]:
    every = server.repositories["org/data"].files
    return {path.removeprefix(f"{folder}/"): f.content for path, f in every.items() if path.startswith(f"{folder}/")}


def test_everything_arrives_and_what_makes_it_a_store_comes_last(store: Path, server: hub.Hub) -> None:
    before = files(store), sorted(store.rglob("*"))
    push(store, DATASET, licence="cc-by-4.0")
    assert (files(store), sorted(store.rglob("*"))) == before
    assert stored(server) == files(store)
    repository = server.repositories["org/data"]
    assert set(repository.files) - {f"s.zarr/{name}" for name in files(store)} == {"README.md", "s.png"}
    *data, last = repository.commits
    assert set(last["paths"]) == {
        "README.md",
        "s.png",
        "s.zarr/zarr.json",
        "s.zarr/SHA256SUMS",
        *(f"s.zarr/{name}" for name in files(store) if name.startswith("done/")),
    }
    assert not {path for commit in data for path in commit["paths"]} & set(last["paths"])
    assert repository.files["s.png"].content.startswith(b"\x89PNG")  # type: ignore[union-attr]
    assert not repository.private


def test_again_uploads_nothing(store: Path, server: hub.Hub) -> None:
    push(store, DATASET)
    commits = len(server.repositories["org/data"].commits)
    push(store, DATASET)
    assert len(server.repositories["org/data"].commits) == commits


@pytest.mark.parametrize("xet", [True, False])
def test_large_files(xet: bool, store: Path, server: hub.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the real client of the content-addressed storage, and through Git LFS where that is off."""
    server.large = 300
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", not xet)
    push(store, DATASET)
    large = {name: content for name, content in files(store).items() if len(content) >= 300}
    assert any(name.startswith("norm_input") for name in large)
    there = server.repositories["org/data"].files
    for name, content in large.items():
        assert there[f"s.zarr/{name}"].sha256 == hashlib.sha256(content).hexdigest()
        assert there[f"s.zarr/{name}"].size == len(content)
    assert (server.cas_bytes > 0) == xet
    assert bool(server.objects) != xet
    sent, commits = server.cas_bytes + server.asked("PUT", "/lfs/"), len(server.repositories["org/data"].commits)
    push(store, DATASET)
    assert len(server.repositories["org/data"].commits) == commits
    assert server.asked("PUT", "/lfs/") == 0 if xet else sent == server.asked("PUT", "/lfs/")


def test_a_stopped_upload_goes_on(store: Path, server: hub.Hub) -> None:
    commits = 0

    def second(method: str, path: str) -> int | None:
        nonlocal commits
        commits += "/commit/" in path
        return 403 if "/commit/" in path and commits > 1 else None

    server.fault = second
    with pytest.raises(OutliersError, match="403"):
        push(store, DATASET)
    assert "zarr.json" not in stored(server)
    assert set(stored(server)) == {name for name in files(store) if not plan.is_last(name)}
    server.fault = lambda method, path: None
    commits = len(server.repositories["org/data"].commits)
    push(store, DATASET)
    assert stored(server) == files(store)
    assert len(server.repositories["org/data"].commits) == commits + 1


def test_another_store_of_that_name_stays_unless_told(store: Path, server: hub.Hub, tmp_path: Path) -> None:
    push(store, DATASET)
    other = builders.on_disk(tmp_path / "o.zarr", builders.random_activations((2, 2, 2, 3, 5)))
    before = stored(server)
    with pytest.raises(OutliersError, match=r"holds another store \(.* differs\); choose another --name"):
        push(other, DATASET, name="s.zarr")
    assert stored(server) == before
    push(other, DATASET, name="s.zarr", overwrite=True)
    assert stored(server) == files(other)
    removal = next(c for c in server.repositories["org/data"].commits if c["paths"] == ["s.zarr/"])
    assert removal["summary"] == "Remove s.zarr"


def test_foreign_files_are_never_replaced(store: Path, server: hub.Hub) -> None:
    server.repositories["org/data"] = hub.Repository(files={"s.zarr/thesis.tex": hub.File(b"mine", 4)})
    with pytest.raises(OutliersError, match=r"holds thesis.tex, which is no file of a store"):
        push(store, DATASET, overwrite=True)
    assert stored(server) == {"thesis.tex": b"mine"}


def page(server: hub.Hub) -> str:
    content = server.repositories["org/data"].files["README.md"].content
    assert content is not None
    return content.decode()


def test_two_stores_share_a_page(store: Path, server: hub.Hub) -> None:
    push(store, DATASET)
    first = page(server)
    push(store, f"{DATASET}/t.zarr")
    assert page(server).startswith(first.rstrip())
    assert page(server).count("\n## ") == 2
    push(store, DATASET)
    assert page(server).count("\n## ") == 2
    assert {"s.png", "t.png"} < set(server.repositories["org/data"].files)
    push(store, DATASET, licence="odc-by")
    import yaml

    assert yaml.safe_load(page(server).split("---")[1])["license"] == "odc-by"
    assert page(server).count("\n## ") == 2


def test_a_page_written_by_hand_keeps_its_words(store: Path, server: hub.Hub) -> None:
    mine = "---\nlicense: other\nmine: yes\n---\n# My own page\n\nWords.\n"
    server.repositories["org/data"] = hub.Repository(files={"README.md": hub.File(mine.encode(), len(mine))})
    push(store, DATASET)
    assert page(server).startswith(mine)
    assert "## s.zarr" in page(server)


def test_a_page_that_cannot_be_read_is_not_replaced(store: Path, server: hub.Hub) -> None:
    push(store, DATASET)
    before = page(server)
    server.fault = lambda method, path: 403 if "/resolve/" in path else None
    with pytest.raises(OutliersError, match="403|failed"):
        push(store, f"{DATASET}/t.zarr")
    assert page(server) == before
    assert "zarr.json" not in stored(server, "t.zarr")


def test_private(store: Path, server: hub.Hub) -> None:
    push(store, DATASET, private=True)
    assert server.repositories["org/data"].private
    server.repositories["org/open"] = hub.Repository()
    with pytest.raises(OutliersError, match="exists and is public"):
        push(store, "hf://datasets/org/open", private=True)
    assert not server.repositories["org/open"].files


def test_a_dry_run_leaves_the_network_alone(
    store: Path, server: hub.Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was used"))
    assert main(["push", str(store), DATASET, "--dry-run"]) == 0
    assert server.requests == []
    captured = capsys.readouterr()
    for name, content in files(store).items():
        assert f"{len(content):>15,}  {DATASET}/s.zarr/{name}\n" in captured.out
    assert "private" not in captured.out
    assert captured.out.startswith("---\nlicense: ")
    assert f"{DATASET}/s.png" in captured.out
    assert "name it with --license" in captured.err
    total = len(files(store))
    assert captured.out.rstrip().splitlines()[-1].startswith(f"would upload {total} files")


def test_what_the_hub_refuses(store: Path, server: hub.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    for target, said in [
        (
            "hf://datasets/elsewhere/data",
            "refuses hf://datasets/elsewhere/data .403: .*rights.*ask for write permission",
        ),
        ("hf://datasets/org", "names no dataset"),
        ("hf://datasets/org/data/a/b", "names no dataset"),
        ("hf://models/org/data", "is no target"),
        ("data/copy.zarr", "is no target"),
    ]:
        with pytest.raises(OutliersError, match=said):
            push(store, target)
    with pytest.raises(OutliersError, match="does not take this .*license.*must be one of"):
        push(store, DATASET, licence="mine alone")
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    with pytest.raises(OutliersError, match=r"401: .*; make a new token"):
        push(store, DATASET)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(OutliersError, match="no token of the Hugging Face Hub"):
        push(store, DATASET)
    monkeypatch.setenv("HF_TOKEN", hub.TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(OutliersError, match="failed .*check the network"):
        push(store, DATASET)


def test_a_full_disk_of_the_hub_or_a_limit_is_told(store: Path, server: hub.Hub) -> None:
    server.repositories["org/data"] = hub.Repository()
    for status, said in [(413, "peaks-only"), (429, "wait, then run the same command again"), (500, "again later")]:
        server.fault = lambda method, path, status=status: status if "/api/datasets" in path else None  # type: ignore[misc]
        with pytest.raises(OutliersError, match=f"{status}: fault {status}.*{said}"):
            push(store, DATASET)


def test_unsound_stores_are_not_uploaded(store: Path, server: hub.Hub, tmp_path: Path) -> None:
    unfinished = builders.on_disk(tmp_path / "u.zarr", builders.random_activations(), done=1)
    file = next((store / "norm_input").glob("c.*"))
    file.write_bytes(b"\0" + file.read_bytes()[1:])
    for path, said in [
        (unfinished, "unfinished"),
        (store, "damaged"),
        (tmp_path / "none.zarr", "no store at"),
        (file, "is a file"),
    ]:
        with pytest.raises(OutliersError, match=said):
            push(path, DATASET)
    assert server.repositories == {}


def test_limits_are_known_before_anything_is_sent(
    store: Path, server: hub.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "MOST_FILES", 3)
    with pytest.raises(OutliersError, match=r"folder [a-z_]+ has \d+ files and the Hub takes fewer than 3"):
        push(store, DATASET)
    monkeypatch.setattr(plan, "MOST_FILES", 10_000)
    monkeypatch.setattr(plan, "LARGEST_FILE", 100)
    with pytest.raises(OutliersError, match="GB and the Hub takes"):
        push(store, DATASET)
    assert server.requests == []


def test_without_the_extra(store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["push", str(store), DATASET]) == 2
    assert "outlier-features[remote]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "name", "expected"),
    [
        ("hf://datasets/a/b", None, "hf://datasets/a/b/s.zarr"),
        ("hf://datasets/a/b/", "x.zarr", "hf://datasets/a/b/x.zarr"),
        ("hf://datasets/a/b/x.zarr", None, "hf://datasets/a/b/x.zarr"),
        ("hf://datasets/a/b/x.zarr", "x.zarr", "hf://datasets/a/b/x.zarr"),
        ("hf://datasets/a/b/x.zarr", "y.zarr", "leave one of them out"),
        ("hf://datasets/a/b/x", None, "is no name for a shared store"),
        ("hf://datasets/a/b", "../x.zarr", "is no name for a shared store"),
        ("hf://datasets/a/..", None, "names no dataset"),
        ("s3://bucket/p/x.zarr", None, "s3://bucket/p/x.zarr"),
        ("s3://bucket/x.zarr/", None, "s3://bucket/x.zarr"),
        ("s3://bucket", None, "names no store in a bucket"),
        ("s3://bucket/x", None, "names no store in a bucket"),
        ("s3:///x.zarr", None, "names no store in a bucket"),
        ("s3://bucket/../x.zarr", None, "names no store in a bucket"),
    ],
)
def test_targets(target: str, name: str | None, expected: str) -> None:
    def url() -> str:
        return bucket_url(target) if target.startswith("s3") else hub_url(target, Path("/data/s.zarr"), name)

    if "://" in expected:
        assert url() == expected
    else:
        with pytest.raises(OutliersError, match=re.escape(expected)):
            url()


def test_the_card_tells_what_the_store_says_and_runs_nothing_of_it(sound: Path) -> None:
    import yaml

    made = card(sound, "s.zarr", f"{DATASET}/s.zarr", licence="cc-by-4.0")
    text = made.page()
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["license"] == "cc-by-4.0"
    assert header["size_categories"] == ["n<1K"]
    assert header["viewer"] is False
    assert header["pretty_name"].startswith("Activations of </code><script>")
    body = text.split("---\n", 2)[2]
    (line,) = [line for line in body.splitlines() if "evil" in line]
    assert line.startswith("- model: ``` </code><script>")
    assert line.endswith(" ```")
    assert "\u202e" not in text
    assert body.count("<!-- end of s.zarr -->\n") == 1  # the forged one stands inside the code span
    assert "ODC-By 1.0" in body
    assert "- of the model: `unknown`" in body
    assert f'xr.open_zarr("{DATASET}/s.zarr")' in body
    data = xr.open_zarr(sound)
    for name in data.data_vars:
        shape = " x ".join(map(str, data[name].shape))
        assert f"| `{name}` | {', '.join(map(str, data[name].dims))} | {shape} |" in body
    # A section replaced is replaced whole, whatever its words are.
    assert made.page(text) == text


def test_code_spans() -> None:
    """By the rule of CommonMark: the span ends at the next run of as many backticks as it began with."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        text = "".join(rng.choice(list("a` |<\\\n\t*"), size=rng.integers(0, 12)))
        span = code(text)
        plain = " ".join(re.sub(r"[\n\t]", " ", text).split(" ")).strip()
        if not plain:
            assert span == "empty"
            continue
        fence = re.match("`+", span)
        assert fence is not None
        inner = span[fence.end() :]
        runs = [m.span() for m in re.finditer("`+", inner) if m.end() - m.start() == fence.end()]
        assert runs == [(len(inner) - fence.end(), len(inner))]
        assert inner[: -fence.end()].strip() == plain
    assert len(code("x" * 10_000)) < 500


@pytest.mark.parametrize(
    ("tokens", "word"), [(999, "n<1K"), (1000, "1K<n<10K"), (32_768, "10K<n<100K"), (10**6, "1M<n<10M")]
)
def test_size_categories(tokens: int, word: str) -> None:
    assert size_category(tokens) == word


@pytest.mark.exhaustive
def test_what_the_page_says_about_opening_is_true(store: Path, server: hub.Hub, tmp_path: Path) -> None:
    """In a fresh process that knows the Hub by its environment: pushed, then opened with plain xarray."""
    code_of_page = (
        "import sys, json\n"
        "from analyze.cli import main\n"
        f"assert main(['push', {str(store)!r}, {DATASET!r}]) == 0\n"
        "import xarray as xr\n"
        f'store = xr.open_zarr("{DATASET}/s.zarr")\n'
        "print(json.dumps({name: float(array.sum()) for name, array in store.data_vars.items()}))\n"
    )
    environment: dict[str, Any] = {"HF_ENDPOINT": server.url, "HF_TOKEN": hub.TOKEN, "HF_HOME": str(tmp_path / "hf")}
    result = subprocess.run(
        [sys.executable, "-c", code_of_page],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    sums = json.loads(result.stdout.splitlines()[-1])
    expected = {name: float(array.sum()) for name, array in xr.open_zarr(store).data_vars.items()}
    assert sums == expected


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A real S3 server of this process."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    pytest.importorskip("obstore")
    server.start()
    _, port = server.get_host_and_port()
    yield f"http://127.0.0.1:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A client of boto3 for the bucket `bucket`, which is empty; obstore finds the server by its environment."""
    boto3 = pytest.importorskip("boto3")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    environment = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    client.create_bucket(Bucket="bucket")
    for entry in client.list_objects_v2(Bucket="bucket").get("Contents", []):
        client.delete_object(Bucket="bucket", Key=entry["Key"])
    return client


S3 = "s3://bucket/captures/s.zarr"


def objects(client: Any, prefix: str = "captures/s.zarr/") -> dict[str, bytes]:
    entries = client.list_objects_v2(Bucket="bucket", Prefix=prefix).get("Contents", [])
    return {
        entry["Key"].removeprefix(prefix): client.get_object(Bucket="bucket", Key=entry["Key"])["Body"].read()
        for entry in entries
    }


@pytest.fixture
def puts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is put into the bucket, in order."""
    import obstore

    names: list[str] = []
    real = obstore.put
    monkeypatch.setattr(obstore, "put", lambda store, name, *a, **k: names.append(name) or real(store, name, *a, **k))
    return names


def test_a_bucket_gets_everything_and_the_root_last(store: Path, bucket: Any, puts: list[str]) -> None:
    assert main(["push", str(store), S3]) == 0
    assert objects(bucket) == files(store)
    assert sorted(puts) == sorted(files(store))
    assert puts[-1] == "zarr.json"
    late = [plan.is_last(name) for name in puts]
    assert late == sorted(late)
    put = len(puts)
    push(store, S3)
    assert len(puts) == put  # what is there already is not sent again


def test_a_stopped_upload_to_a_bucket_goes_on(
    store: Path, bucket: Any, puts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import obstore

    recorded = obstore.put

    def broken(target: Any, name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("position_peak/c"):
            raise ConnectionError("cut")
        return recorded(target, name, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(obstore, "put", broken)
        with pytest.raises(OutliersError, match="s3://bucket/captures/s.zarr: .*cut"):
            push(store, S3)
    there = objects(bucket)
    assert not any(plan.is_last(name) for name in there)
    puts.clear()
    push(store, S3)
    assert sorted(puts) == sorted(set(files(store)) - set(there))
    assert objects(bucket) == files(store)


def test_files_of_many_parts_are_known_again(
    bucket: Any, puts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their tags are no MD5 of the content, so that the digest left with them must do."""
    store = builders.on_disk(tmp_path / "s.zarr", builders.random_activations((1, 1, 2, 50, 20_000)), raw="input")
    monkeypatch.setattr("analyze.sharing.bucket._ONE_REQUEST", 5 * 2**20)
    monkeypatch.setattr("analyze.sharing.bucket._PART", 5 * 2**20)
    push(store, S3)
    assert "-2" in bucket.head_object(Bucket="bucket", Key="captures/s.zarr/norm_input/c.0.0.0.0.0")["ETag"]
    puts.clear()
    push(store, S3)
    assert puts == []


def test_an_upload_leaves_nothing_half_open(store: Path, bucket: Any) -> None:
    """Files go in one request each: parts of one that is killed would stay, unseen, until somebody aborts it."""
    push(store, S3)
    assert objects(bucket) == files(store)
    tags = [bucket.head_object(Bucket="bucket", Key=f"captures/s.zarr/{name}")["ETag"] for name in files(store)]
    assert not any("-" in tag for tag in tags)
    assert "Uploads" not in bucket.list_multipart_uploads(Bucket="bucket")


@pytest.mark.parametrize("target", ["s3://bucket/captures/s.zarr", DATASET])
def test_strangers_and_paths_stay_at_home(
    target: str, server: hub.Hub, bucket: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attributes = {"model_id": "/home/jane/model", "command": "outliers capture ~jane/model --hf-token abcd"}
    store = builders.on_disk(tmp_path / "s.zarr", builders.random_activations((1, 1, 2, 3, 4)), attributes=attributes)
    expected = set(files(store))
    for name in ("notes.txt", "nll/mine[1].csv", "other.zarr/zarr.json"):
        (store / name).parent.mkdir(exist_ok=True)
        (store / name).write_text("mine")
    assert main(["push", str(store), target]) == 0
    said = capsys.readouterr().err
    assert "left out, since it is no file of the store: nll/mine[1].csv, notes.txt, other.zarr/" in said
    there = objects(bucket) if target.startswith("s3") else stored(server)
    assert set(there) == expected
    pages = [] if target.startswith("s3") else server.repositories["org/data"].files.values()
    every = [*there.values(), *(file.content for file in pages)]
    assert not any(word in (content or b"") for content in every for word in (b"jane", b"abcd"))
    assert main(["push", str(store), target]) == 0  # what is there is known again
    with pytest.raises(OutliersError, match="holds another store"):
        push(store, target, keep_paths=True)


def test_files_that_another_tool_copied_are_known(store: Path, bucket: Any, puts: list[str]) -> None:
    for name, content in files(store).items():
        bucket.put_object(Bucket="bucket", Key=f"captures/s.zarr/{name}", Body=content)
    push(store, S3)
    assert puts == []


def test_another_store_in_a_bucket_stays_unless_told(store: Path, bucket: Any, tmp_path: Path, puts: list[str]) -> None:
    push(store, S3)
    other = builders.on_disk(tmp_path / "o.zarr", builders.random_activations((1, 2, 2, 3, 5)))
    before = objects(bucket)
    with pytest.raises(OutliersError, match=r"holds another store \(.* differs\)"):
        push(other, S3)
    assert objects(bucket) == before
    puts.clear()
    push(other, S3, overwrite=True)
    assert objects(bucket) == files(other)
    assert puts[-1] == "zarr.json"
    bucket.put_object(Bucket="bucket", Key="captures/s.zarr/thesis.tex", Body=b"mine")
    with pytest.raises(OutliersError, match=r"holds thesis.tex, which is no file of a store"):
        push(store, S3, overwrite=True)
    assert objects(bucket)["thesis.tex"] == b"mine"


def test_what_a_bucket_refuses(store: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(OutliersError, match="there is no such bucket"):
        push(store, "s3://nowhere/s.zarr")
    with pytest.raises(OutliersError, match="--license and --private mean nothing for s3://"):
        push(store, S3, licence="odc-by", private=True)
    unfinished = builders.on_disk(tmp_path / "u.zarr", builders.random_activations(), done=1)
    with pytest.raises(OutliersError, match="unfinished"):
        push(unfinished, S3)
    assert objects(bucket) == {}
    monkeypatch.setattr("analyze.sharing.bucket._RETRIES", 0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(OutliersError, match="cannot be reached.*run the same command again"):
        push(store, S3)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("analyze.sharing.bucket.find_spec", lambda name: None)
    with pytest.raises(OutliersError, match=r"outlier-features\[remote\]"):
        push(store, S3)


@pytest.mark.parametrize("target", ["s3://bucket/captures/s.zarr", DATASET])
def test_a_store_without_its_list_of_checksums_is_refused(
    target: str, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (store / "SHA256SUMS").unlink()
    for words in (
        ["push", str(store), target, "--dry-run"],
        ["push", str(store), target, "--dry-run", "--keep-paths"],
        ["pack", str(store), "--out", str(store.with_name("p.zarr.zip"))],
    ):
        assert main(words) == 2
        assert f"{store} has no SHA256SUMS, by which a store is checked; restore it" in capsys.readouterr().err


def test_a_dry_run_to_a_bucket(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(store), S3, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(files(store)) + 1
    assert {line.split("/s.zarr/")[1] for line in lines[:-1]} == set(files(store))
