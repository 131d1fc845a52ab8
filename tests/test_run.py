"""The frame of every command: settings and options from words, exit codes, what a record may say of a command."""

import errno
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import pytest
from trainings import Tiny

from results.errors import RunFailed, UserError
from results.files import ROOT
from zoo.backbones import standard_preprocessing
from zoo.checkpoint import RUNS
from zoo.options import MethodOptions, Options, check_least, public
from zoo.run import (
    ERROR,
    LATER,
    Method,
    Task,
    command,
    failure_noted,
    guarded,
    now,
    parse,
    registry,
    settings_of,
    shown_path,
)

KINDS = registry("pretrain", "probes", "transfer")
METHODS = registry("pretrain")


@pytest.fixture(autouse=True)
def _keep_the_signal_handler():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_the_registry_finds_the_modules_that_define_a_method_or_task():
    for folder, kind in (("pretrain", Method), ("probes", Task)):
        found = registry(folder)
        for path in (ROOT / folder).glob("*.py"):
            defines = f"({kind.__name__}):" in path.read_text()
            assert (f"{folder}.{path.stem}" in found) == defines, path
        assert all(issubclass(value, kind) and value.name == name for name, value in found.items())
    assert registry("pretrain", "probes") == registry("pretrain") | registry("probes")


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_a_bare_command_runs_the_defaults(kind):
    settings, options = parse(kind, [])
    assert settings == kind()
    assert options == (MethodOptions if issubclass(kind, Method) else kind.options)(dataset=kind.home)
    on_voc = kind.name == "probes.svm" or kind.name.startswith("transfer.")
    assert kind.home == ("minivoc" if on_voc else "digits")


@pytest.mark.parametrize(
    ("kind", "dataset"),
    [(kind, name) for kind in KINDS.values() for name in kind.presets],
    ids=lambda given: str(given),
)
def test_a_data_set_brings_its_preset(kind, dataset):
    name = "folder:somewhere" if dataset == "folder" else dataset
    settings, options = parse(kind, ["--dataset", name])
    assert options.dataset == name
    wanted = kind.presets[dataset].items()
    assert wanted <= asdict(settings).items() or all(getattr(settings, key) == value for key, value in wanted)
    assert settings == kind(**kind.preset(name))


@pytest.mark.parametrize("kind", METHODS.values(), ids=lambda kind: kind.name)
def test_what_the_command_leaves_out_is_the_data_set_s_preset(kind):
    for dataset, preset in kind.presets.items():
        word = "folder:/some/images" if dataset == "folder" else dataset
        for words in (["--dataset", word], [f"--dataset={word}"]):
            settings, options = parse(kind, [*words, "--batch", "7"])
            assert settings == kind(**{**preset, "batch": 7})
            assert options.dataset == word


@pytest.mark.parametrize("kind", METHODS.values(), ids=lambda kind: kind.name)
def test_lists_and_shards_have_the_presets_of_folders(kind):
    found = [parse(kind, ["--dataset", name])[0] for name in ("folder:/a", "list:/a/b.txt", "shards:/a/x-{0..9}.tar")]
    assert found[0] == found[1] == found[2] != kind()


def test_presets_are_settings():
    for kind in METHODS.values():
        for preset in kind.presets.values():
            assert kind(**preset) != kind()
            assert "seed" not in preset


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_help_has_every_setting_and_option(kind, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(kind, ["--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    flags = {field.name for field in (*fields(kind), *fields(Options))} - {"seed", "processes"}
    assert [name for name in sorted(flags) if f"--{name.replace('_', '-')}" not in out] == []
    assert "--seed " not in out
    assert "--no-force" not in out
    assert (sys.modules[kind.__module__].__doc__ or "").splitlines()[0] in out


def test_help_has_the_defaults_of_the_data_set_named(capsys):
    kind = METHODS["pretrain.deepcluster"]
    said = {}
    for dataset in ("digits", "imagenet"):
        with pytest.raises(SystemExit):
            parse(kind, ["--dataset", dataset, "--help"])
        said[dataset] = capsys.readouterr().out
    assert "(default: 50)" in said["digits"]
    assert "(default: 10000)" in said["imagenet"]


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
@pytest.mark.parametrize(("flag", "meant"), [("--datset", "--dataset"), ("--precison", "--precision")])
def test_an_unknown_flag(kind, flag, meant, capsys):
    with pytest.raises(SystemExit) as ended:
        guarded(lambda: parse(kind, [flag, "x"]))
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert flag in err
    assert meant in err


@pytest.mark.parametrize("words", [["--batch", "many"], ["--precision", "fp16"], ["--batch"], ["--dataset"], ["x"]])
def test_a_value_that_is_none(words, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(METHODS["pretrain.deepcluster"], words)
    assert ended.value.code == 2
    assert words[0].strip("-") in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_an_unknown_data_set(kind, capsys):
    assert guarded(lambda: command(kind, ["--dataset", "fashion-mnits", "--threads", "1"])) == 2
    err = capsys.readouterr().err
    assert "did you mean 'fashion-mnist'?" in err
    assert "folder:PATH" in err


def test_places():
    assert Options().records.root == ROOT / "results" / "records"
    assert Options().runs_dir == RUNS
    elsewhere = Options(store=Path("a"), runs=Path("b"))
    assert (elsewhere.records.root, elsewhere.runs_dir) == (Path("a"), Path("b"))


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("--k 10 --quiet", "--k 10 --quiet"),
        ("--dataset folder:/home/me/cats/ --k 10", "--dataset folder:cats --k 10"),
        ("--dataset=folder:/home/me/cats", "--dataset=folder:cats"),
        ("--data-dir /home/me/data --k 10", "--k 10"),
        ("--data-dir=/home/me/data --k 10", "--k 10"),
        ("--dataset list:/home/me/train.txt,/home/me/val.txt", "--dataset list:train.txt,val.txt"),
        ("--dataset shards:/home/me/x-{00..99}.tar,../y-*.tar", "--dataset shards:x-{00..99}.tar,y-*.tar"),
        ("--dataset folder:/home/me:too/cats", "--dataset folder:cats"),
        ("--checkpoint /home/me:too/model.pth", "--checkpoint model.pth"),
        ("--device cuda:1", "--device cuda:1"),
        ("--data_dir data --k 10", "--k 10"),
        ("--exclude /home/me/corrupt.txt --k 10", "--exclude corrupt.txt --k 10"),
        ("--store /a --runs /b --out /c --k 10", "--k 10"),
        ("--store=/a --k 10 --runs=/b", "--k 10"),
        ("--checkpoint /home/me/model.pth.tar", "--checkpoint model.pth.tar"),
        ("--checkpoint random-alexnet32@0", "--checkpoint random-alexnet32@0"),
    ],
)
def test_what_a_record_keeps_of_a_command(words, kept):
    assert public(words.split()) == kept.split()


@pytest.mark.parametrize(
    ("ends", "code", "said"),
    [
        (None, 0, ""),
        (UserError("not there", "the folder", "this"), 2, "error: not there\n  looked in: the folder\n  try: this\n"),
        (RunFailed("it diverged"), 1, "error: it diverged\n"),
        (KeyboardInterrupt(), 130, "interrupted; the same command, without --force, continues"),
        (OSError(errno.ENOSPC, "No space left", "/full"), 2, "error: /full: No space left\n  try: free"),
        (OSError(errno.EROFS, "Read-only file system"), 2, "error: the disk: Read-only file system\n  try: "),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "x"), 2, "a file stands where a folder is needed"),
    ],
)  # fmt: skip
def test_exit_codes(ends, code, said, capsys):
    def work():
        if ends is not None:
            raise ends

    assert guarded(work) == code
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("bug", [ValueError("a bug"), OSError("a library's own"), OSError(errno.EIO, "broken disk")])
def test_a_bug_keeps_its_traceback(bug):
    def work():
        raise bug

    with pytest.raises(type(bug)):
        guarded(work)


def test_sigterm_ends_with_143(capsys):
    with pytest.raises(SystemExit) as ended:
        guarded(lambda: signal.raise_signal(signal.SIGTERM))
    assert ended.value.code == 143
    assert "terminated; the same command" in capsys.readouterr().err


def test_a_closed_pipe_is_no_error():  # `| head` has seen enough
    words = "import sys; from zoo.run import guarded; sys.exit(guarded(lambda: print('x\\n' * 999999)))"
    with subprocess.Popen(
        [sys.executable, "-c", words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 0


def test_a_failure_is_noted_and_a_success_removes_it(tmp_path):
    def fail():
        with failure_noted(tmp_path / "run"):
            raise ValueError("why it failed")

    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match="why it failed"):
        fail()
    assert "why it failed" in (tmp_path / "run" / ERROR).read_text()
    with failure_noted(tmp_path / "run"):
        pass
    assert not (tmp_path / "run" / ERROR).exists()


def test_a_failure_that_cannot_be_noted_is_still_the_failure(tmp_path, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    def fail():
        with failure_noted(tmp_path):
            raise RunFailed("why it failed")

    monkeypatch.setattr("results.files.sync", full)
    with pytest.raises(RunFailed, match="why it failed"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_is_no_failure(tmp_path):
    def interrupted():
        with failure_noted(tmp_path):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_the_least_a_value_may_be():
    check_least({"k": 1, "lr": 0.0, "limit": None}, {"k": 1, "lr": 0, "limit": 1, "absent": 5})
    for values in ({"weight_decay": -1.0}, {"weight_decay": float("nan")}, {"weight_decay": float("inf")}):
        with pytest.raises(UserError, match=r"--weight-decay") as raised:
            check_least(values, {"weight_decay": 0})
        assert raised.value.fix == "0 or more"


@dataclass(frozen=True)
class Plain(Method):
    name = "pretrain.plain"
    version = 1


def test_a_method_opens_its_split():
    dataset = Tiny()
    assert Plain().opens(dataset) == "train"
    assert Plain(images="merged").opens(dataset) == "merged"


def test_a_method_s_images_are_normalised_by_their_data_set():
    dataset = Tiny()
    found = Plain().preprocessing(dataset)
    assert found == replace(standard_preprocessing("alexnet32", 3), mean=dataset.mean, std=dataset.std)
    assert Plain(backbone="small_vgg").preprocessing(dataset).channels == 1


def test_settings_are_hashable_and_plain():
    for kind in KINDS.values():
        hash(kind())
        assert all(isinstance(v, bool | int | float | str | tuple | None) for v in asdict(kind()).values())


@dataclass(frozen=True)
class Later(Plain):
    depth: int = field(default=2, metadata=LATER)


def test_a_later_setting_is_recorded_where_it_is_not_the_default():
    old = {f.name: getattr(Plain(), f.name) for f in fields(Plain) if f.name not in ("imbalance", "processes")}
    assert settings_of(Plain()) == settings_of(Later()) == old
    assert settings_of(Later(depth=3)) == old | {"depth": 3}
    assert settings_of(Later(depth=2, imbalance=4.0)) == old | {"imbalance": 4.0}
    assert settings_of(Later(seed=1)) == old | {"seed": 1}


def test_paths_as_one_would_type_them(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert shown_path(ROOT / "runs" / "x") == "runs/x"
    assert shown_path(tmp_path) == str(tmp_path)


def test_now_is_utc_to_the_second():
    assert len(now()) == 20
    assert now().endswith("Z")
