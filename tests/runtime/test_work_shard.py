import dataclasses
import itertools

import pytest
from etils import epath

from deeplab_jax.errors import ConfigError
from deeplab_jax.runtime.work_shard import EVERYTHING, Join, WorkShard, choose_shard


def array(task, low, high, count):
    values = {"ID": task, "MIN": low, "MAX": high, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


def test_each_item_belongs_to_one_shard():
    assert WorkShard(2, 3).take("abcdefg") == ["b", "e"]
    shares = [WorkShard(number, 3).take("abcdefg") for number in (1, 2, 3)]
    assert sorted(itertools.chain(*shares)) == list("abcdefg")
    assert WorkShard(3, 3).take("ab") == []


@pytest.mark.parametrize(
    ("text", "environ", "expected"),
    [
        ("", {}, (1, 1)),
        ("2/3", {}, (2, 3)),
        ("2/3", array(0, 0, 3, 4), (2, 3)),
        ("1/1", array(1, 0, 3, 4), (1, 1)),
        ("", array(0, 0, 3, 4), (1, 4)),
        ("", array(4, 1, 4, 4), (4, 4)),
        ("", array(14, 10, 18, 3), (2, 3)),  # --array=10-18:4
        ("", array(7, 7, 7, 1), (1, 1)),
    ],
)
def test_the_flag_comes_before_slurm(text, environ, expected):
    shard = choose_shard(text, environ)
    assert (shard.number, shard.count) == expected


def test_a_share_that_slurm_chose_is_announced():
    assert choose_shard("", array(5, 5, 6, 2)).describe() == (
        "Shard 1 of 2, because this is task 5 of SLURM's array. Use --shard 1/1 to process everything."
    )
    assert choose_shard("1/2", {}).describe() == "Shard 1 of 2."


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "1", "1/4/2", "-1/4", "a/b", " 1/4"])
def test_other_values_are_refused(text):
    with pytest.raises(ConfigError, match=r"`--shard` \(=.*\) cannot be used. Give I/N with I from 1 to N, such as 1/4."):
        choose_shard(text, {})


def test_a_task_of_an_uneven_array_is_refused():
    # At least one task of --array=1,5,7 ends like this, and its shard is missing.
    with pytest.raises(ConfigError, match="from SLURM's array, whose 3 tasks are not evenly spaced from 1 to 7"):
        choose_shard("", array(5, 1, 7, 3))
    with pytest.raises(ConfigError, match="not evenly spaced from 1 to 4"):
        choose_shard("", array(1, 1, 4, 3))  # --array=1,2,4


def make_joins(folder, count, work="work"):
    return [Join(WorkShard(number, count), epath.Path(folder), work) for number in range(1, count + 1)]


def test_the_last_shard_has_all_results_and_the_others_name_the_missing_ones(tmp_path):
    first, second, third = make_joins(tmp_path, 3)
    lines = []
    assert second.finish("b", "plan", lines.append) is None
    assert third.finish("c", "plan", lines.append) is None
    assert lines == ["Shards 1, 3 of 3 are not done yet.", "Shard 1 of 3 is not done yet."]
    assert first.finish("a", "plan", lines.append) == ["a", "b", "c"]
    assert len(lines) == 2


def test_a_shard_can_be_done_again(tmp_path):
    first, second = make_joins(tmp_path, 2)
    lines = []
    first.finish("a", "plan", lines.append)
    second.finish("old", "plan", lines.append)
    second.withdraw()
    assert first.finish("a", "plan", lines.append) is None
    assert lines == ["Shard 2 of 2 is not done yet."] * 2
    assert second.finish("new", "plan", lines.append) == ["a", "new"]


@pytest.mark.parametrize("others", [{"work": "other", "count": 2}, {"work": "work", "count": 3}])
def test_other_work_is_removed_at_the_start_and_an_error_at_the_end(others, tmp_path):
    other, *_ = make_joins(tmp_path, **others)
    other.finish(None, "plan", lambda line: None)
    first, _ = make_joins(tmp_path, 2)
    first.withdraw()
    assert first.finish("a", "plan", lambda line: None) is None
    with pytest.raises(ConfigError, match="at the same time"):
        other.finish(None, "plan", lambda line: None)
    assert not list(tmp_path.glob(f".shards-{others['work']}.*of-{others['count']}"))


def test_a_shard_that_was_divided_differently_is_missing(tmp_path):
    first, second = make_joins(tmp_path, 2)
    lines = []
    first.finish("a", "a plan", lambda line: None)
    assert second.finish("b", "another plan", lines.append) is None
    assert lines == ["Shard 1 of 2 is not done yet. Shard 1 was done with other devices, or could not read the same inputs."]
    assert first.finish("a", "another plan", lines.append) == ["a", "b"]


def test_pictures_of_other_inputs_can_be_in_the_same_folder(tmp_path):
    first, second = (dataclasses.replace(join, is_exclusive=False) for join in make_joins(tmp_path, 2))
    make_joins(tmp_path, 2, "other")[0].finish(None, "plan", lambda line: None)
    first.withdraw()
    first.finish("a", "plan", lambda line: None)
    assert second.finish("b", "plan", lambda line: None) == ["a", "b"]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_folder_that_cannot_be_used_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^Cannot write .*file/out: Not a directory\."):
        Join(EVERYTHING, epath.Path(tmp_path / "file" / "out"), "").withdraw()


def test_one_process_leaves_no_files(tmp_path):
    join = Join(EVERYTHING, epath.Path(tmp_path), "")
    make_joins(tmp_path, 2)[0].finish("a", "plan", lambda line: None)
    join.withdraw()
    assert join.finish("a", "plan", print) == ["a"]
    assert not list(tmp_path.iterdir())
