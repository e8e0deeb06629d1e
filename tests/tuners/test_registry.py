import copy
import pickle

import pytest
from peft import PeftConfig, get_peft_config
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType

from onelora_vision.tuners import MoraConfig, OneLoraConfig, OneLoraModel
from onelora_vision.tuners.registry import peft_type, register


@pytest.mark.parametrize(("name", "config_cls"), [("ONELORA", OneLoraConfig), ("MORA", MoraConfig)])
def test_the_enum_knows_the_method_by_name_and_value(name, config_cls):
    member = PeftType[name]
    assert member == name and PeftType(name) is member and member in list(PeftType)
    assert getattr(PeftType, name) is member and member.name == member.value == name
    assert pickle.loads(pickle.dumps(member)) is member and copy.deepcopy(member) is member
    assert PEFT_TYPE_TO_CONFIG_MAPPING[member] is config_cls
    assert isinstance(get_peft_config({"peft_type": name, "target_modules": ["fc"]}), config_cls)


def test_registering_twice_changes_nothing():
    before = list(PeftType)
    register("onelora", PeftConfig, OneLoraModel)
    assert peft_type("onelora") is PeftType["ONELORA"]
    assert list(PeftType) == before and PEFT_TYPE_TO_CONFIG_MAPPING["ONELORA"] is OneLoraConfig
