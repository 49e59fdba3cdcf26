"""Names to objects."""

import pytest

from metarl import registry
from metarl.errors import ConfigError, nearest


def test_every_entry_point_resolves():
    for group in registry.GROUPS:
        assert registry.names(group), group
        for name in registry.names(group):
            target = registry.resolve(group, name)
            assert (target.__doc__ or "").strip() or hasattr(target, "info"), (group, name)


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ConfigError, match=r"no objective called 'grol'\. Did you mean 'gorl'\?"):
        registry.resolve("metarl.objectives", "grol")
    assert nearest("zzz", ["a", "b"]) == " Known: a, b."


def test_a_file_beside_the_yaml_comes_first_and_is_loaded_once(tmp_path):
    (tmp_path / "json.py").write_text("class Mine:\n    pass\n")
    mine = registry.resolve("metarl.objectives", "json:Mine", folder=tmp_path)
    assert mine is registry.resolve("metarl.objectives", "json:Mine", folder=tmp_path)
    with pytest.raises(ConfigError, match=r"no 'Mihe'\. Did you mean 'Mine'"):
        registry.resolve("metarl.objectives", "json:Mihe", folder=tmp_path)


def test_a_module_that_fails_to_import_says_so_every_time(tmp_path):
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    for _ in range(2):
        with pytest.raises(ConfigError, match="nothing_of_that_name"):
            registry.resolve("metarl.objectives", "broken:Mine", folder=tmp_path)
