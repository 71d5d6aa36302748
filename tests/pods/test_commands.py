"""Every command that the pods scripts would run, literally."""

import pytest

from fot_jax.config import UserError
from launch import cli
from launch.pods import jobset, queued_resources, setup

WHERE = ["--name=fot", "--project=my-project", "--zone=us-central2-b"]
KIND = ["--accelerator-type=v4-32", "--runtime-version=tpu-ubuntu2204-base"]
TRAIN = ["--", "--config=configs/longllama.py:3b", "--workdir=/mnt/shared/runs/3b", "--config.name=a b"]
AT = "--project=my-project --zone=us-central2-b"
GCLOUD = "gcloud compute tpus queued-resources"
SYNC = [
    "git archive --format=tar.gz --output=/tmp/fot.tar.gz HEAD",
    f"{GCLOUD} scp /tmp/fot.tar.gz fot:fot_jax.tar.gz {AT} --worker=all --node=all",
    f"{GCLOUD} ssh fot {AT} --worker=all --node=all '--command=rm -rf fot_jax/fot_jax fot_jax/launch fot_jax/configs"
    " && mkdir -p fot_jax && tar -xzf fot_jax.tar.gz -C fot_jax && cd fot_jax"
    " && python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --allow-existing --python=3.11 .venv"
    " && python3 -m uv pip install --quiet --python=.venv/bin/python -r requirements.txt"
    """ '"'"'jax[tpu]>=0.10,<0.11'"'"''""",
]
CREATE = f"{GCLOUD} create fot {AT} --accelerator-type=v4-32 --runtime-version=tpu-ubuntu2204-base"
STATE = f"{GCLOUD} describe fot {AT} '--format=value(state.state)'"
EXIT = f"{GCLOUD} ssh fot {AT} --worker=0 --node=0 '--command=cat fot_jax/logs/exit 2> /dev/null || true'"


def run(module, *arguments, capsys):
    """The lines a command prints."""
    cli.run(module.main, module.make_parser(), arguments)
    return capsys.readouterr().out.splitlines()


def dry(action, *arguments, capsys):
    return run(queued_resources, action, *WHERE, "--dry-run", *arguments, capsys=capsys)


@pytest.mark.parametrize(
    ("action", "lines"),
    [
        ("sync", SYNC),
        ("tail", [f"{GCLOUD} ssh fot {AT} --worker=0 --node=0 '--command=tail -n 100 -F fot_jax/logs/train.log'"]),
        ("stop", [f"{GCLOUD} ssh fot {AT} --worker=0 --node=0 '--command=kill -TERM $(cat fot_jax/logs/pid)'"]),
        ("delete", [f"{GCLOUD} delete fot {AT} --force --quiet"]),
        ("status", [STATE, "slice: ACTIVE", EXIT, "training: 0"]),
    ],
)
def test_commands_without_flags(action, lines, capsys):
    assert dry(action, capsys=capsys) == lines


def test_hosts_act_as_the_service_account_of_the_project(capsys):
    (line,) = dry("create", *KIND, "--service-account=fot-runs", capsys=capsys)
    email = "fot-runs@my-project.iam.gserviceaccount.com"
    assert line == f"{CREATE} --node-id=fot --service-account={email} --async"
    (line,) = dry("create", *KIND, "--service-account=a@b.iam.gserviceaccount.com", capsys=capsys)
    assert "--service-account=a@b.iam.gserviceaccount.com" in line


def test_create_one_slice_and_several(capsys):
    assert dry("create", *KIND, capsys=capsys) == [f"{CREATE} --node-id=fot --async"]
    several = f"{CREATE} --node-count=2 --node-prefix=fot --spot --async"
    assert dry("create", *KIND, "--slices=2", "--spot", capsys=capsys) == [several]


STARTED = [
    f"{GCLOUD} ssh fot {AT} --worker=all --node=all '--command=cd fot_jax && mkdir -p logs && rm -f logs/exit && (nohup"
    """ bash -c '"'"'.venv/bin/python -m launch.train --config=configs/longllama.py:3b --workdir=/mnt/shared/runs/3b"""
    """ '"'"'"'"'"'"'"'"'--config.name=a b'"'"'"'"'"'"'"'"' & echo $! > logs/pid; wait $!; echo $? > logs/exit'"'"'"""
    " >> logs/train.log 2>&1 < /dev/null &)'"
]


def test_run_quotes_what_the_shell_of_the_hosts_would_take_apart(capsys):
    assert dry("run", *TRAIN, capsys=capsys) == STARTED


def test_keep_prints_a_whole_round(capsys):
    create = f"{CREATE} --node-id=fot --spot --async"
    assert dry("keep", *KIND, "--spot", *TRAIN, capsys=capsys) == [create, STATE, *SYNC, *STARTED, STATE, EXIT]


class Pod:
    """Answers as a slice would; `calls` is what was asked of it."""

    def __init__(self, *, states, codes):
        self.states, self.codes, self.calls = iter(states), iter(codes), []

    def state(self):
        return next(self.states)

    def exit_code(self):
        return next(self.codes)

    def __getattr__(self, name):
        return lambda *_: self.calls.append(name)


def kept(pod, *flags):
    """Runs `keep` on it; returns the waits."""
    parser = queued_resources.make_parser()
    waits = []
    given = cli.parse_flags(parser, ["keep", *WHERE, *KIND, *flags, *TRAIN])
    queued_resources.keep(pod, given, wait=waits.append, log=lambda line: None)
    return waits


ROUND = ["create", "sync", "train"]


def test_preempted_slice_is_made_again_and_training_goes_on():
    states = ["WAITING_FOR_RESOURCES", "ACTIVE", "ACTIVE", "SUSPENDED", "FAILED", "ACTIVE", "ACTIVE", "ACTIVE"]
    pod = Pod(states=states, codes=["", "", "0"])
    assert kept(pod) == [60.0, 60.0, 60.0]
    assert pod.calls == [*ROUND, "delete", "create", "delete", *ROUND]


def test_an_error_of_the_training_is_not_retried_and_retries_end():
    with pytest.raises(UserError, match="exit code 2, which a retry does not fix"):
        kept(Pod(states=["ACTIVE", "ACTIVE"], codes=["2"]))
    with pytest.raises(UserError, match="the slice was lost 3 times"):
        kept(Pod(states=["FAILED"] * 3, codes=[]), "--retries=2")


def test_failed_command_on_a_living_slice_is_no_preemption():
    class Broken(Pod):
        def sync(self):
            raise UserError("gcloud ... ended with exit code 1")

    with pytest.raises(UserError, match="exit code 1"):
        kept(Broken(states=["ACTIVE", "ACTIVE"], codes=[]))
    pod = Broken(states=["ACTIVE", "SUSPENDED", "ACTIVE", "SUSPENDED"], codes=[])
    with pytest.raises(UserError, match="was lost 2 times"):
        kept(pod, "--retries=1")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--name=Fot;rm", "argument --name: must be lower-case letters"),
        ("--project=a b", "argument --project: must be a project's id"),
        ("--zone=$(x)", "argument --zone: must be a zone"),
        ("--accelerator-type=v4", "argument --accelerator-type: must be like v4-32"),
        ("--runtime-version=-x", "argument --runtime-version: must be like"),
    ],
)
def test_names_are_checked(flag, message, capsys):
    with pytest.raises(SystemExit) as stop:
        dry("create", *KIND, flag, capsys=capsys)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and message in err and err.count("\n") == 1


COMMON = ["--name=fot", "--image=us-docker.pkg.dev/p/r/fot_jax:1", "--topology=4x4", "--dry-run"]
APPLY = ["apply", *COMMON, "--accelerator=tpu-v5-lite-podslice"]
GKE = ["--project=my-project", "--cluster=pods", "--location=us-west4-a", "--compute-type=v5litepod-16"]
CLAIM = ["--claim=shared"]
ACCOUNT = ["--service-account=fot-runs"]
BUCKET_TRAIN = ["--", "--config=configs/longllama.py:3b", "--workdir=gs://my-runs/3b"]


def test_a_jobset_manifest_is_the_golden_one(capsys, golden):
    lines = run(jobset, *APPLY, *CLAIM, *TRAIN, capsys=capsys)
    assert lines[-1] == "kubectl apply --filename=fot.yaml"
    golden("jobset", lines[:-1])
    more = run(jobset, *APPLY, *CLAIM, "--spot", "--slices=2", "--queue=team", *TRAIN, capsys=capsys)
    changed = [line.strip() for line in more if line not in lines]
    wanted = ["labels:", "kueue.x-k8s.io/queue-name: team", "replicas: 2", 'cloud.google.com/gke-spot: "true"']
    assert changed == wanted


def test_a_jobset_for_a_bucket_has_an_account_and_no_volume(capsys, golden):
    lines = run(jobset, *APPLY, *ACCOUNT, *BUCKET_TRAIN, capsys=capsys)
    golden("jobset_bucket", lines)
    shared = run(jobset, *APPLY, *CLAIM, "--", *BUCKET_TRAIN[1:-1], "--workdir=/mnt/shared/3b", capsys=capsys)
    gone = [line.strip() for line in shared if line not in lines and "launch.train" not in line]
    assert gone == [
        "- {name: JAX_COMPILATION_CACHE_DIR, value: /mnt/shared/xla}",
        *("volumeMounts:", "- {name: shared, mountPath: /mnt/shared}"),
        *("volumes:", "- name: shared", "persistentVolumeClaim: {claimName: shared}"),
    ]


def test_gcluster_is_called_with_the_same_training(capsys):
    job = (
        "gcluster job submit --project=my-project --cluster=pods --location=us-west4-a --name=fot"
        " --image=us-docker.pkg.dev/p/r/fot_jax:1 --compute-type=v5litepod-16 --topology=4x4 --num-slices=1"
        " --restarts=20 --grace-period=120s"
    )
    assert run(jobset, "gcluster", *COMMON, *GKE, *CLAIM, *TRAIN, capsys=capsys) == [
        f"{job} --mount=shared:/mnt/shared:rw"
        " '--command=python -m launch.train --config=configs/longllama.py:3b --workdir=/mnt/shared/runs/3b"
        """ '"'"'--config.name=a b'"'"''"""
    ]
    assert run(jobset, "gcluster", *COMMON, *GKE, *ACCOUNT, *BUCKET_TRAIN, capsys=capsys) == [
        f"{job} --service-account=fot-runs"
        " '--command=python -m launch.train --config=configs/longllama.py:3b --workdir=gs://my-runs/3b'"
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*APPLY, *CLAIM, "--", "--workdir=runs/x"], "must be gs://BUCKET/FOLDER or in /mnt/shared"),
        ([*APPLY, *ACCOUNT, "--", "--workdir=gs://my-runs"], "must be gs://BUCKET/FOLDER or in /mnt/shared"),
        ([*APPLY, *ACCOUNT, *TRAIN], "--claim=NAME must name the volume claim to mount at /mnt/shared"),
        ([*APPLY, *CLAIM, *BUCKET_TRAIN], "--service-account=NAME must name the Kubernetes service account"),
        ([*APPLY, *CLAIM, "--topology=2x3", *TRAIN], "has 6 chips, which hosts of --chips-per-host=4 do not divide"),
        ([*APPLY, "--image=UPPER CASE", *TRAIN], "argument --image: must be a container image"),
        (["gcluster", *COMMON, *GKE, *TRAIN], "--claim=NAME must name the volume claim"),
    ],
)
def test_what_no_jobset_can_be(arguments, message, capsys):
    with pytest.raises(SystemExit):
        run(jobset, *arguments, capsys=capsys)
    assert message in capsys.readouterr().err


SETUP = ["--project=my-project", "--zone=us-central2-b", "--bucket=my-runs", "--service-account=fot-runs"]


@pytest.fixture
def answers(tmp_path, monkeypatch):
    """Programs gcloud and kubectl that write down how they are called and answer "it is there" to a look."""
    for name in ("gcloud", "kubectl"):
        program = tmp_path / name
        program.write_text(
            f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/calls\ncase "$*" in *" list "*|get*) echo there;; esac\n'
        )
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return lambda: (tmp_path / "calls").read_text().splitlines()


def test_setup_makes_nothing_that_is_there(answers, capsys):
    run(setup, *SETUP, "--gke-namespace=default", capsys=capsys)
    assert not [call for call in answers() if " create " in call and "get" not in call]
    assert sum("add-iam-policy-binding" in call for call in answers()) == 3


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--bucket=gs://my-runs", "argument --bucket: must be a bucket's name without gs://"),
        ("--service-account=fot", "argument --service-account: must be 6 to 30"),
        ("--zone=us-central2", "argument --zone: must be a zone"),
    ],
)
def test_names_of_the_setup_are_checked(flag, message, capsys):
    with pytest.raises(SystemExit):
        run(setup, *SETUP, flag, capsys=capsys)
    assert message in capsys.readouterr().err


def test_a_missing_program_is_one_line(capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit) as stop:
        cli.run(queued_resources.main, queued_resources.make_parser(), ["delete", *WHERE])
    assert stop.value.code == 2 and "'gcloud' cannot be used" in capsys.readouterr().err
