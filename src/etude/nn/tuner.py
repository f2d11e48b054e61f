"""The one host of all adapter methods in PEFT: type `ETUDE`, whose saved configuration names a method of the catalogue and its options.

PEFT brings injection, several adapters, save, load, merge and disable; a method brings what one adapter adds. It has one function,
`adapter(layers, facts) -> Injected`, which gets the linear layers by name and returns

- `shared`: a module with all that several layers have in common. It stands in one place, the tuner, is saved once, and the layers look it up;
- `parts`: a module for each layer, called with the layer's input and its output so far, with `delta()` for merging;
- `facts`: what must hold when the adapter is loaded again. They are written into the configuration, and come back as the argument `facts`.

Names are resolved to methods of the catalogue and to nothing else. Without `import etude` PEFT does not know the type and stops: KeyError 'ETUDE'.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Protocol, cast

from peft import PeftConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import peft_types
from peft.utils.peft_types import PeftType
from torch import Tensor, nn
from transformers import PreTrainedModel

from etude import catalogue
from etude.nn.adapted import AdaptedLayer, Part, device_of, move, refuse_quantised
from etude.nn.same_base import check, sketch
from etude.nn.surgery import is_linear, linear_layers

NAME = "ETUDE"
HEADS = {
    "ForSequenceClassification": TaskType.SEQ_CLS,
    "ForTokenClassification": TaskType.TOKEN_CLS,
    "ForQuestionAnswering": TaskType.QUESTION_ANS,
}


@dataclass(frozen=True)
class Injected:
    """One adapter: what its layers share, each layer's part by the layer's name, and what must hold when it is loaded again."""

    shared: nn.Module
    parts: Mapping[str, Part]
    facts: Mapping[str, Any]


class Method(Protocol):
    """What the host asks of a method."""

    def adapter(self, layers: Mapping[str, nn.Module], facts: Mapping[str, Any]) -> Injected:
        """The adapter for these layers; `facts` are those of the saved adapter, empty for a new one."""


@dataclass
class EtudeConfig(PeftConfig):
    """adapter_config.json of every method.

    Attributes:
        method: name in the catalogue ("tied_lora").
        options: of the method.
        target_modules: ends of layer names, or a regular expression, as everywhere in PEFT.
        modules_to_save: layers that are trained whole and saved with the adapter (a new label head).
        facts: what must hold of the base model and of the method's own draws; filled in when the adapter is attached.
    """

    method: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    target_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    bias: str = "none"
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType(NAME)
        if isinstance(self.target_modules, set):
            self.target_modules = sorted(self.target_modules)


def register(peft_module: ModuleType) -> None:
    """Enter the type, its configuration and its tuner in PEFT's tables; a second call changes nothing."""
    if NAME not in PeftType.__members__:
        _add_type(NAME)
    if PeftType(NAME) not in peft_module.mapping.PEFT_TYPE_TO_CONFIG_MAPPING:
        peft_types.register_peft_method(name=NAME.lower(), config_cls=EtudeConfig, model_cls=EtudeTuner)


def _add_type(name: str) -> None:
    """A new member of `PeftType`: a closed enum, and `register_peft_method` refuses names that it lacks."""
    tables: Any = PeftType
    member: Any = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    tables._member_map_[name] = tables._value2member_map_[name] = member
    tables._member_names_.append(name)
    type.__setattr__(PeftType, name, member)


def attach(model: PreTrainedModel, name: str, method: Any, layers: Iterable[str], heads: Sequence[str] = ()) -> PeftModel:
    """The model with a new adapter of this method around some of its linear layers, in the mode in which it came.

    Args:
        model: changed in place; its own weights are frozen.
        name: of the method in the catalogue.
        method: a dataclass with the options.
        layers: names of the layers.
        heads: names of modules that are trained whole and saved along.
    """
    training, targets = model.training, names_for(model, layers)
    about = {"target_modules": targets, "modules_to_save": list(heads) or None, "task_type": task_of(model)}
    config = EtudeConfig(method=name, options=catalogue.to_options(method), **about)
    tuned = cast(PeftModel, get_peft_model(model, config))
    tuned.train(training)
    return tuned


def names_for(model: nn.Module, layers: Iterable[str]) -> list[str]:
    """The shortest names by which PEFT finds these layers and no others: what follows the number of the block, or the names themselves."""
    wanted = list(layers)
    ends = list(dict.fromkeys(re.sub(r"^.*?\.\d+\.", "", name) for name in wanted))
    found = {name for name, _ in model.named_modules() if any(name == end or name.endswith(f".{end}") for end in ends)}
    return ends if found == set(wanted) else wanted


def task_of(model: PreTrainedModel) -> TaskType | None:
    """PEFT's name for what the model's head does: it decides whether a label head is trained and saved, and whether `generate` is there."""
    ends = {
        "ForSequenceClassification": TaskType.SEQ_CLS,
        "ForTokenClassification": TaskType.TOKEN_CLS,
        "ForQuestionAnswering": TaskType.QUESTION_ANS,
    }
    found = next((task for end, task in ends.items() if type(model).__name__.endswith(end)), None)
    if found is None and model.can_generate():
        return TaskType.SEQ_2_SEQ_LM if model.config.is_encoder_decoder else TaskType.CAUSAL_LM
    return found


def refuse_adapted(model: nn.Module) -> None:
    """Raise a ValueError for a model that already carries an adapter: names and heads are another's there."""
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError("the model already carries an adapter: merge or unload it, or add a second one with add_adapter")


def method_of(config: EtudeConfig) -> Method:
    """The method that a configuration names, with its options.

    Raises:
        ValueError: the catalogue has no such method, it is no adapter, or it refuses the options.
    """
    entry = catalogue.find(config.method)
    if not hasattr(entry.load(), "adapter"):
        raise ValueError(f"{config.method!r} is no adapter method (it has no `adapter`): the configuration's `method` is wrong")
    return cast(Method, catalogue.make(entry, config.options))


class EtudeTuner(BaseTuner):
    """Wraps the target layers and holds, adapter by adapter, what they share."""

    uses_shared_state = True
    prefix = f"{NAME.lower()}_"
    tuner_layer_cls = AdaptedLayer
    target_module_mapping: dict[str, list[str]] = {}

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        self.etude_shared = nn.ModuleDict()

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Make one adapter, the first or a further one, and wrap the layers.

        Raises:
            ValueError: no layer matches, or the base model is not the one that a saved adapter was trained on.
        """
        config = self.peft_config[adapter_name]
        layers = self._targets(model, config)
        check(layers, config.facts.get("base", {}), config.base_model_name_or_path)
        made = method_of(config).adapter(layers, config.facts.get("method", {}))
        config.facts = {"base": config.facts.get("base") or sketch(layers), "method": dict(made.facts)}
        before = [(parameter, parameter.requires_grad) for parameter in self.etude_shared.parameters()]
        self.etude_shared[adapter_name] = made.shared
        self._parts = dict(made.parts)
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except Exception:
            del self.etude_shared[adapter_name]
            raise
        finally:
            del self._parts
        move(made.shared, device_of(next(iter(layers.values()))))
        for parameter, required in before:  # a further adapter leaves those that are there as they are
            parameter.requires_grad_(required)

    def _targets(self, model: nn.Module, config: EtudeConfig) -> dict[str, nn.Module]:
        """The layers that the configuration means, without the adapters that stand around them."""
        found, inside = dict[str, nn.Module](), tuple[str, ...]()
        for name, module in model.named_modules():
            if not name or (inside and name.startswith(inside)):
                continue
            if isinstance(module, AdaptedLayer):
                inside += (f"{name}.",)
            if config.target_modules and self._check_target_module_exists(config, name):
                found[name] = module.get_base_layer() if isinstance(module, AdaptedLayer) else module
        for name, module in found.items():
            if not (is_linear(module) or hasattr(module, "in_features")):
                raise ValueError(f"{name} is a {type(module).__name__}, no linear layer: it cannot be adapted; {candidates(model)}")
        if not found:
            raise ValueError(f"no layer matches the targets {config.target_modules!r}; {candidates(model)}")
        return found

    def _create_and_replace(
        self, config: PeftConfig, adapter_name: str, target: nn.Module, target_name: str, parent: nn.Module, current_key: str, **kwargs: Any
    ) -> None:
        layer = target if isinstance(target, AdaptedLayer) else AdaptedLayer(target)
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)
        layer.etude_parts[adapter_name] = self._parts[current_key].train(layer.training)
        layer._move_adapter_to_device_of_base_layer(adapter_name)
        if adapter_name not in self.active_adapters:
            layer.etude_parts[adapter_name].requires_grad_(False)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str) -> None:
        layer = next(module for module in self.model.modules() if isinstance(module, AdaptedLayer))
        move(self.etude_shared[adapter_name], device_of(layer.get_base_layer()))

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Iterator[None]:
        """A batch whose rows have an adapter each ("__base__" for none): PEFT calls this around `forward` and `generate`."""
        layers = [module for module in self.model.modules() if isinstance(module, AdaptedLayer)]
        rows = tuple(adapter_names or ())
        if unknown := [name for name in rows if name not in (*self.peft_config, "__base__")]:
            raise ValueError(f"there is no adapter {unknown[0]!r}; there are {', '.join(self.peft_config)}, and __base__")
        if rows and (self.training or any(layer.merged for layer in layers)):
            raise ValueError("adapter_names is for a model in evaluation mode whose adapters are not merged")
        for layer in layers:
            layer.rows = rows
        try:
            yield
        finally:
            for layer in layers:
                layer.rows = ()

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Make these adapters the active ones; only they are trained."""
        super().set_adapter(adapter_name, inference_mode)
        active = [adapter_name] if isinstance(adapter_name, str) else adapter_name
        for name, shared in self.etude_shared.items():
            shared.requires_grad_(name in active and not inference_mode)

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Train or freeze these adapters."""
        super().set_requires_grad(adapter_names, requires_grad)
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            self.etude_shared[name].requires_grad_(requires_grad)

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter, with what its layers shared."""
        was_active = adapter_name in self.active_adapters
        super().delete_adapter(adapter_name)
        del self.etude_shared[adapter_name]
        if was_active:  # PEFT takes what is left on the first layer, where another adapter need not have a part
            self.set_adapter(self.active_adapter or list(self.peft_config)[:1])

    def _check_merge_allowed(self) -> None:
        super()._check_merge_allowed()
        for module in self.model.modules():
            if isinstance(module, AdaptedLayer):
                refuse_quantised(module.get_base_layer())

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return re.sub(rf"(\betude_(?:shared|parts))\.{re.escape(adapter_name)}(?=\.)", r"\1", key, count=1)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """PEFT's, made strict: PEFT itself only warns of tensors that are missing, and passes over those that are too many."""
        mapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        ours = re.compile(rf"\betude_(shared|parts)\.{re.escape(adapter_name)}\.")
        wanted = {key for key in model.state_dict() if ours.search(key)}
        given = {key for key in mapped if re.search(r"\betude_(shared|parts)\.", key)}
        for said, keys in (("lacks", wanted - given), ("holds, beyond what belongs to it,", given - wanted)):
            if keys:
                names = ", ".join(sorted(keys)[:3])
                raise ValueError(
                    f"the file of adapter {adapter_name!r} {said} {len(keys)} tensors ({names}...): save it again with `save_pretrained`"
                )
        return mapped


def candidates(model: nn.Module) -> str:
    """For an error: which linear layers there are, by the ends of their names."""
    ends = sorted({re.sub(r"^.*\.\d+\.", "", name) for name in linear_layers(model)} - {""}) if any(map(is_linear, model.modules())) else []
    return f"linear layers of this model: {', '.join(ends) or 'none'}"
