"""What we rely on in AI-Toolkit, looked up in the source of a checkout: nothing of it is imported.

    ISENGARD_AI_TOOLKIT=/path/to/ai-toolkit pytest tests/aitoolkit

A failure names what another commit has added or taken away.
"""

import ast
import contextlib
import functools
import inspect
import json

import pytest

from isengard.domain.ai_toolkit_import import from_yaml
from isengard.errors import InvalidSpec
from isengard.settings import ASSETS

pytestmark = pytest.mark.aitoolkit

FACTS = json.loads((ASSETS / "ai-toolkit.json").read_text(encoding="utf-8"))
CONFIGS = "toolkit/config_modules.py"
#: From the process we extend down to its roots: a method is looked up in this order.
TRAINERS = {
    "SDTrainer": "extensions_built_in/sd_trainer/SDTrainer.py",
    "BaseSDTrainProcess": "jobs/process/BaseSDTrainProcess.py",
    "BaseTrainProcess": "jobs/process/BaseTrainProcess.py",
    "BaseProcess": "jobs/process/BaseProcess.py",
}
SECTIONS = {
    "network": "NetworkConfig",
    "save": "SaveConfig",
    "datasets": "DatasetConfig",
    "train": "TrainConfig",
    "ema_config": "EMAConfig",
    "model": "ModelConfig",
    "sample": "SampleConfig",
    "samples": "SampleItem",
    "logging": "LoggingConfig",
}


@pytest.fixture(scope="session")
def source(ai_toolkit_checkout):
    """The syntax tree of one file of the checkout."""
    return functools.cache(
        lambda path: ast.parse((ai_toolkit_checkout / path).read_text(encoding="utf-8"), path)
    )


def class_in(tree, name):
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)


def function_in(node, name):
    return next(entry for entry in node.body if isinstance(entry, ast.FunctionDef) and entry.name == name)


def parameters(function):
    given = function.args
    return [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)][1:]


def read_keys(node, owner, method):
    """First arguments of all calls ``owner.method("key")``."""
    return {
        call.args[0].value
        for call in ast.walk(node)
        if isinstance(call, ast.Call)
        and ast.unparse(call.func) == f"{owner}.{method}"
        and isinstance(call.args[0], ast.Constant)
    }


def compared_with(node, name):
    """Texts that ``name`` is compared with, or begins with."""
    return {
        constant.value
        for test in ast.walk(node)
        if (isinstance(test, ast.Compare) and ast.unparse(test.left) == name)
        or (isinstance(test, ast.Call) and ast.unparse(test.func) == f"{name}.startswith")
        for constant in ast.walk(test)
        if isinstance(constant, ast.Constant) and isinstance(constant.value, str)
    }


def assigned(tree):
    """Names a module or the methods of a class make: ``name`` and ``self.name``."""
    targets = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                targets.add(ast.unparse(target).removeprefix("self."))
    return targets


def module_names(tree):
    named = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)} | assigned(
        ast.Module([node for node in tree.body if not hasattr(node, "body")], [])
    )
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            named |= {alias.asname or alias.name for alias in node.names}
    return named


def differing(known, found):
    return {"no longer there": sorted(set(known) - set(found)), "new": sorted(set(found) - set(known))}


SAME = {"no longer there": [], "new": []}


@pytest.mark.parametrize(("section", "name"), SECTIONS.items())
def test_the_keys_of_a_section_are_those_its_class_reads(source, section, name):
    found = read_keys(class_in(source(CONFIGS), name), "kwargs", "get")
    assert differing(FACTS["keys"][section], found) == SAME


def test_the_keys_of_a_process_are_those_the_trainers_read(source):
    found = {"type"} | {
        key.partition(".")[0]
        for name, path in TRAINERS.items()
        for key in read_keys(class_in(source(path), name), "self", "get_conf")
    }
    assert differing(FACTS["keys"]["process"], found) == SAME
    assert not found & set(FACTS["unread"]["process"])  # in every example, without an effect


def test_the_keys_of_a_job_are_those_the_jobs_read(source):
    found = {"process"}
    for name in ("BaseJob", "ExtensionJob"):
        found |= read_keys(class_in(source(f"jobs/{name}.py"), name), "self", "get_conf")
    assert differing(FACTS["keys"]["config"], found) == SAME
    said = {node.value for node in ast.walk(source("jobs/BaseJob.py")) if isinstance(node, ast.Constant)}
    assert {"process", "type", *FACTS["keys"]["job"]} <= said


def test_the_network_takes_these_arguments(source):
    network = class_in(source("toolkit/lora_special.py"), "LoRASpecialNetwork")
    assert differing(FACTS["keys"]["network_kwargs"], parameters(function_in(network, "__init__"))) == SAME


def test_the_optimizer_takes_the_arguments_we_give():
    torch = pytest.importorskip("torch")
    prodigy = pytest.importorskip("prodigyopt").Prodigy
    accepted = set(inspect.signature(torch.optim.AdamW).parameters) | set(
        inspect.signature(prodigy).parameters
    )
    assert set(FACTS["keys"]["optimizer_params"]) <= accepted


@pytest.mark.parametrize(
    ("what", "path", "function", "variable"),
    [
        ("optimizers", "toolkit/optimizer.py", "get_optimizer", "lower_type"),
        ("lr_schedulers", "toolkit/scheduler.py", "get_lr_scheduler", "name"),
        ("dtypes", "toolkit/train_tools.py", "get_torch_dtype", "dtype_str"),
    ],
)
def test_the_names_that_can_be_chosen(source, what, path, function, variable):
    found = compared_with(function_in(source(path), function), variable)
    assert differing(FACTS["values"][what], found) == SAME


def test_the_timestep_types(source):
    path = "toolkit/samplers/custom_flowmatch_sampler.py"
    scheduler = class_in(source(path), "CustomFlowMatchEulerDiscreteScheduler")
    found = compared_with(function_in(scheduler, "set_train_timesteps"), "timestep_type")
    assert differing(FACTS["values"]["timestep_types"], found) == SAME


def test_the_kinds_of_quantization(source):
    kinds = next(
        node.value
        for node in source("toolkit/util/quantize.py").body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "torchao_qtypes"
    )
    assert differing(FACTS["values"]["torchao_qtypes"], [key.value for key in kinds.keys]) == SAME


def test_the_process_types_of_the_trainer(source):
    tree = source("extensions_built_in/sd_trainer/__init__.py")
    found = {
        node.value.value
        for each in tree.body
        if isinstance(each, ast.ClassDef)
        for node in each.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "uid"
    }
    assert differing(FACTS["values"]["process_types"], found) == SAME


@pytest.mark.parametrize("method", FACTS["trainer"]["methods"])
def test_a_method_we_call_or_override_takes_the_same_arguments(source, method):
    for name, path in TRAINERS.items():
        for entry in class_in(source(path), name).body:
            if isinstance(entry, ast.FunctionDef) and entry.name == method:
                assert parameters(entry) == FACTS["trainer"]["methods"][method]
                return
    pytest.fail(f"{method} is gone")


def test_the_trainer_keeps_what_we_read_under_these_names(source):
    made = set().union(*(assigned(class_in(source(path), name)) for name, path in TRAINERS.items()))
    assert set(FACTS["trainer"]["attributes"]) <= made


@pytest.mark.parametrize("module", FACTS["names"])
def test_a_module_has_the_names_we_import(source, module):
    assert set(FACTS["names"][module]) <= module_names(source(module.replace(".", "/") + ".py"))


@pytest.mark.parametrize("module", FACTS["classes"])
def test_a_class_has_the_names_we_use(source, module):
    tree = source(module.replace(".", "/") + ".py")
    for name, used in FACTS["classes"][module].items():
        found = class_in(tree, name)
        methods = {entry.name for entry in found.body if isinstance(entry, ast.FunctionDef)}
        annotated = {ast.unparse(entry.target) for entry in found.body if isinstance(entry, ast.AnnAssign)}
        assert set(used) <= methods | annotated | assigned(found), name


@pytest.mark.parametrize("module", FACTS["parameters"])
def test_a_function_takes_the_arguments_we_give(source, module):
    found = {
        entry.name: [argument.arg for argument in (*entry.args.args, *entry.args.kwonlyargs)]
        for entry in ast.walk(source(module.replace(".", "/") + ".py"))
        if isinstance(entry, ast.FunctionDef)
    }
    known = FACTS["parameters"][module]
    assert {name: found.get(name) for name in known} == known


def test_their_examples_of_a_lora_are_read(ai_toolkit_checkout):
    outcomes = {}
    for path in (ai_toolkit_checkout / "config" / "examples").glob("train_lora_flux*.yaml"):
        outcomes[path.name] = from_yaml(path.read_text(encoding="utf-8")).overrides
    assert len(outcomes) >= 3
    assert all({"rank", "steps", "learning_rate"} <= found.keys() for found in outcomes.values())


def test_their_other_examples_are_read_or_refused_with_a_reason(ai_toolkit_checkout):
    for path in (ai_toolkit_checkout / "config" / "examples").glob("*.y*ml"):
        with contextlib.suppress(InvalidSpec):
            from_yaml(path.read_text(encoding="utf-8"))
