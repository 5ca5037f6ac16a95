from __future__ import annotations

import copy
import json
import logging
import pickle
from enum import Enum

import numpy as np
import pytest

from diffusers_ref import Config, ConfigError, DDIMScheduler, DDPMScheduler, PNDMScheduler, UNet2DModel
from diffusers_ref.configuration import ConfigMixin, register_to_config
from diffusers_ref.modeling import shapes_only


class Colour(str, Enum):
    RED = "red"


class Lamp(ConfigMixin):
    config_name = "lamp.json"
    convention_options = frozenset({"flicker"})

    @register_to_config
    def __init__(self, power, colour="red", levels=(1, 2), flicker=None):
        self.watts = power


class Torch(ConfigMixin):
    config_name = "lamp.json"

    @register_to_config
    def __init__(self, power=5, colour="blue", battery="AA"):
        pass


class BigLamp(Lamp):
    @register_to_config
    def __init__(self, size, power=100):
        super().__init__(power, colour="white")


def test_every_argument_is_recorded_and_the_record_is_frozen():
    lamp = Lamp(3, levels=[4, [5]])
    assert dict(lamp.config) == {"power": 3, "colour": "red", "levels": (4, (5,)), "flicker": None}
    assert lamp.config.power == lamp.config["power"] == 3
    assert lamp.config.defaulted == {"colour", "flicker"}
    assert lamp.watts == 3
    with pytest.raises(AttributeError, match="frozen"):
        lamp.config.power = 4
    with pytest.raises(AttributeError, match=r"Lamp config has no 'volts'; it has power, colour"):
        _ = lamp.config.volts


def test_the_outermost_constructor_is_recorded():
    assert dict(BigLamp(2).config) == {"size": 2, "power": 100}
    assert BigLamp(2).config.owner == "BigLamp"


def test_arrays_and_enums_become_plain_values():
    config = Lamp(np.array([0.1, 0.2]), colour=Colour.RED, levels=np.float64(0.5)).config
    assert dict(config) == {"power": (0.1, 0.2), "colour": "red", "levels": 0.5, "flicker": None}
    assert type(config.colour) is str and type(config.levels) is float


def test_a_record_survives_copying_and_pickling():
    config = Lamp(3).config
    for twin in (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert twin == config and twin.defaulted == config.defaulted and twin.owner == "Lamp"


def test_json_round_trip(tmp_path):
    lamp = Lamp(0.1, levels=(7, 8))
    lamp.save_config(tmp_path / "deep" / "folder")
    text = (tmp_path / "deep" / "folder" / "lamp.json").read_text()
    assert text == lamp.to_json_string() and text.endswith("}\n")
    assert json.loads(text).keys() == {
        "_class_name",
        "_defaulted",
        "_diffusers_ref_version",
        "colour",
        "levels",
        "power",
    }
    again = Lamp.from_config(Lamp.load_config(tmp_path / "deep" / "folder"))
    assert again.config == lamp.config


def test_a_convention_option_is_written_only_where_it_differs():
    assert "flicker" not in Lamp(1).to_json_string()
    assert json.loads(Lamp(1, flicker="50Hz").to_json_string())["flicker"] == "50Hz"


def test_what_json_cannot_hold_is_an_error():
    with pytest.raises(ConfigError, match="config of Lamp cannot be written"):
        Lamp(object()).to_json_string()


def test_an_unknown_key_is_an_error_that_names_it_and_what_is_allowed():
    message = r"Lamp has no option 'colr' \(did you mean 'colour'\?\); allowed: colour, flicker, levels, power"
    with pytest.raises(ConfigError, match=message):
        Lamp.from_config({"power": 1, "colr": "red"})
    with pytest.raises(ConfigError, match="no option 'colr'"):
        Lamp.from_config({"power": 1}, colr="red")


def test_metadata_is_dropped_and_overrides_win():
    assert Lamp.from_config({"power": 1, "_class_name": "Torch", "_anything": 0}, power=2).config.power == 2


def test_a_missing_key_is_named():
    with pytest.raises(ConfigError, match="Lamp needs power"):
        Lamp.from_config({})


def test_defaults_of_one_class_are_not_choices_of_another(caplog):
    with caplog.at_level(logging.WARNING):
        assert dict(Lamp.from_config(Torch(power=9).config).config)["colour"] == "red"
    assert not caplog.records
    assert Lamp.from_config(Torch(9, colour="green").config).config.colour == "green"


def test_a_key_of_the_class_that_made_the_record_is_dropped_with_one_warning(caplog):
    with caplog.at_level(logging.WARNING):
        Lamp.from_config(Torch(9, battery="C").config)
    assert [record.getMessage() for record in caplog.records] == ["Lamp has no option battery: ignored"]


def test_published_scheduler_files_carry_keys_of_their_siblings(caplog):
    published = {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": "0.1.1",
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "clip_sample": True,
        "num_train_timesteps": 1000,
        "skip_prk_steps": True,
        "tensor_format": "pt",
        "timestep_values": None,
        "trained_betas": None,
        "variance_type": "fixed_large",
    }
    with caplog.at_level(logging.WARNING):
        scheduler = DDPMScheduler.from_config(published)
    assert scheduler.config.variance_type == "fixed_large"
    assert [record.getMessage() for record in caplog.records] == [
        "DDPMScheduler has no option skip_prk_steps, tensor_format, timestep_values: ignored"
    ]
    with pytest.raises(ConfigError, match="timestep_values"):
        DDPMScheduler.from_config({"timestep_values": [1, 2]})


def test_ddim_made_from_pndm_keeps_its_own_last_alpha():
    assert PNDMScheduler().config.set_alpha_to_one is False
    assert DDIMScheduler.from_config(PNDMScheduler().config).config.set_alpha_to_one is True
    assert DDIMScheduler.from_config(PNDMScheduler(set_alpha_to_one=False).config).config.set_alpha_to_one is False
    assert DDIMScheduler.from_config(DDPMScheduler(beta_end=0.03).config).config.beta_end == 0.03


@pytest.mark.parametrize("cls", [DDIMScheduler, DDPMScheduler, PNDMScheduler, UNet2DModel])
def test_own_classes_round_trip(cls, tmp_path):
    with shapes_only():
        made = cls()
        made.save_config(tmp_path)
        assert cls.from_config(cls.load_config(tmp_path)).config == made.config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no configuration file"),
        ("{", "is not valid JSON"),
        ("[1]", "must hold a JSON object, not a list"),
    ],
)
def test_unreadable_files(tmp_path, text, message):
    if text is not None:
        (tmp_path / "lamp.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        Lamp.load_config(tmp_path)


def test_a_file_is_no_folder_to_save_into(tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(FileExistsError, match="it is a file"):
        Lamp(1).save_config(tmp_path / "taken")


def test_a_config_is_a_plain_mapping():
    config = Config({"a": 1})
    assert {**config} == {"a": 1} and "a" in config and len(config) == 1 and config.get("b") is None


def test_defaults_of_one_class_are_no_choices_of_another_through_a_file(tmp_path):
    PNDMScheduler(beta_end=0.015).save_pretrained(tmp_path)

    borrowed = DDIMScheduler.from_pretrained(tmp_path)

    assert borrowed.config.beta_end == 0.015
    assert borrowed.config.set_alpha_to_one is True  # PNDM's default is False


def test_a_choice_in_a_file_is_kept_by_another_class(tmp_path):
    PNDMScheduler(set_alpha_to_one=False).save_pretrained(tmp_path)

    assert DDIMScheduler.from_pretrained(tmp_path).config.set_alpha_to_one is False


def test_a_file_keeps_the_default_that_its_class_had(tmp_path):
    PNDMScheduler().save_pretrained(tmp_path)
    file = tmp_path / "scheduler_config.json"
    file.write_text(file.read_text().replace('"beta_end": 0.02', '"beta_end": 0.03'))

    assert PNDMScheduler.from_pretrained(tmp_path).config.beta_end == 0.03


def test_what_was_left_at_its_default_stays_so_through_files(tmp_path):
    PNDMScheduler(beta_end=0.015).save_pretrained(tmp_path)

    assert PNDMScheduler.from_pretrained(tmp_path).config.defaulted == PNDMScheduler(beta_end=0.015).config.defaulted
