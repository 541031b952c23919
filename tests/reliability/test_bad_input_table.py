"""The table of bad input: for each case its test, here or where its subject is tested.

A case is a mistake that users make or a state that machines get into; each ends with one line on stderr that names the
place and what to do, and with a documented exit code.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from faults import Ended, Home, Trial

TESTS = {path.stem: path for path in Path(__file__).parents[1].rglob("test_*.py")}

# number -> what is wrong, and the test elsewhere, by module and name; the other cases are below, by their number
ELSEWHERE: dict[int, tuple[str, str, str]] = {
    1: ("path missing", "test_cli_bad_input", "test_every_missing_input_is_told_at_once_with_the_name_that_was_meant"),
    3: ("no permission", "test_sources", "test_a_file_without_permission_is_an_error_at_run_time"),
    4: ("output cannot be written", "test_cli_bad_output", "test_a_place_that_takes_no_files_is_told_before_any_work"),
    5: ("output exists", "test_cli_bad_output", "test_an_output_that_exists_is_replaced_by_force_only"),
    6: ("stdin is a terminal", "test_cli_bad_output", "test_a_terminal_as_stdin_is_refused_and_not_waited_for"),
    7: ("stdin is empty", "test_cli_bad_input", "test_empty_standard_input_is_told"),
    8: ("stdout is closed", "test_cli_bad_output", "test_a_reader_that_goes_away_ends_the_command_in_silence"),
    9: ("the reader of progress goes", "test_streams", "test_a_training_run_outlives_the_reader_of_its_progress"),
    10: ("stdout on a full disk", "test_cli_bad_output", "test_a_full_disk_behind_stdout_is_told"),
    11: ("Ctrl-C", "test_signals", "test_a_signal_in_any_phase_ends_the_run_in_order_and_it_goes_on_to_the_same_end"),
    12: ("Ctrl-C twice", "test_signals", "test_a_second_signal_ends_the_run_at_once"),
    13: ("no terminal, NO_COLOR, dumb", "test_streams", "test_a_command_behaves_with_two_kinds_of_stdout"),
    17: ("evil file name", "test_hostile_text", "test_a_file_with_an_evil_name_is_shown_escaped"),
    19: ("disk full", "test_full_disk", "test_some_operations_that_fail_end_the_run_with_one_line"),
    21: ("empty corpus", "test_cli_bad_input", "test_a_corpus_that_is_no_text_is_told_with_its_place"),
    22: ("not UTF-8", "test_text", "test_an_undecodable_byte_is_placed"),
    23: ("binary file", "test_sources", "test_what_is_not_text_is_named"),
    24: ("UTF-16, byte order mark", "test_text", "test_utf16_without_a_mark_needs_its_byte_order"),
    25: ("one huge line", "test_text", "test_one_line_of_200_megabytes_takes_a_few_megabytes_of_memory"),
    26: ("truncated gzip", "test_text", "test_gzip_that_ends_early_says_after_how_many_bytes"),
    27: ("corpus too small", "test_cli_bad_input", "test_a_vocabulary_that_the_corpus_cannot_fill_is_warned_of"),
    28: ("vocabulary size", "test_cli_bad_input", "test_a_vocabulary_that_cannot_be_is_refused_with_its_bounds"),
    29: ("special tokens", "test_tokenizer", "test_specials_that_cannot_be_are_refused"),
    30: ("pathological text", "test_hostile_text", "test_no_text_takes_more_than_about_linear_time_to_encode"),
    31: ("JSONL: empty line", "test_text", "test_a_record_is_a_document_and_blank_lines_are_skipped"),
    32: ("JSONL: broken line", "test_text", "test_a_bad_record_is_placed"),
    33: ("JSONL: field", "test_text", "test_a_bad_record_is_placed"),
    34: ("lone surrogate", "test_tokenizer", "test_lone_surrogates_are_refused"),
    35: (
        "fewer tokens than a context",
        "test_batches",
        "test_fewer_tokens_than_a_context_are_refused_with_both_numbers",
    ),
    36: ("<|endoftext|> in a document", "test_tokenizer", "test_text_never_becomes_a_special_token"),
    37: (
        "prepare is killed",
        "test_kills",
        "test_a_crash_at_any_of_some_operations_of_a_command_leaves_the_old_output_or_the_new",
    ),
    38: ("shard cut", "test_cli_bad_input", "test_a_cut_shard_is_told_with_both_sizes"),
    39: ("id outside", "test_cli_bad_input", "test_an_id_outside_of_the_vocabulary_is_told"),
    40: ("another tokenizer", "test_cli_bad_input", "test_a_tokenizer_other_than_the_prepared_one_is_told"),
    41: (
        "key typo",
        "test_key_typos",
        "test_500_typos_in_keys_are_refused_with_the_line_and_mostly_the_key_that_was_meant",
    ),
    42: ("wrong type", "test_yaml_file", "test_what_a_field_refuses"),
    43: ("broken YAML", "test_yaml_file", "test_what_no_file_may_hold"),
    44: ("out of range", "test_yaml_file", "test_relations_are_reported_where_the_field_or_its_section_was_given"),
    45: ("unknown override", "test_yaml_file", "test_all_problems_in_order_of_lines_then_overrides"),
    46: ("run exists", "test_cli_bad_input", "test_a_run_that_exists_is_gone_on_with_only_when_told"),
    47: ("two runs", "test_streams", "test_of_two_writers_one_is_refused_with_pid_host_and_time"),
    48: ("checkpoint damaged", "test_damage", "test_a_damaged_checkpoint_is_found_and_passed_over_with_one_warning"),
    49: ("changed on resume", "test_damage", "test_resuming_with_another_setting_names_the_key_and_changes_nothing"),
    50: ("finished run", "test_damage", "test_a_finished_run_says_so"),
    51: ("killed", "test_kills", "test_a_crash_at_any_of_some_operations_of_a_run_loses_nothing"),
    52: ("not finite", "test_not_finite", "test_at_some_steps_training_stops_before_the_update_and_says_where"),
    53: ("out of memory", "test_not_finite", "test_out_of_memory_names_the_knob_with_a_value_for_this_run"),
    60: ("results for jq", "test_cli", "test_evaluate_gives_json_and_a_table"),
    61: ("empty prompt", "test_cli_bad_input", "test_an_empty_prompt_begins_a_text"),
    62: ("long prompt", "test_cli_bad_input", "test_a_prompt_longer_than_the_context_is_refused_or_cut"),
    63: ("context runs out", "test_engine", "test_the_end_of_the_context_ends_a_text"),
    64: (
        "options",
        "test_cli_bad_input",
        "test_a_generate_option_that_cannot_be_is_refused_before_the_model_is_loaded",
    ),
    65: ("logits not finite", "test_not_finite", "test_a_logit_that_is_not_finite_ends_a_text_with_its_position"),
    66: ("stop string over tokens", "test_engine", "test_stop_strings_across_tokens_never_leak"),
    67: ("control characters", "test_hostile_text", "test_text_is_escaped_on_a_terminal_and_exact_in_a_pipe"),
    68: ("one bad row", "test_cli_bad_input", "test_a_bad_record_among_good_ones_does_not_stop_the_others"),
}
# Of fine-tuning, tested with it: labels, chat rows, adapters; and what no test can bring about: clocks, file servers.
OTHERS = {20, 56, 57, 58}


def test_every_case_has_a_test() -> None:
    here = {int(number) for number in re.findall(r"^def test_case_(\d+)_", Path(__file__).read_text(), re.M)}
    assert here | set(ELSEWHERE) | OTHERS == set(range(1, 69))
    for number, (_, module, function) in ELSEWHERE.items():
        tree = ast.parse(TESTS[module].read_text())
        there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert function in there, f"case {number}: {module}::{function}"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("table"), steps=3, save_every=3)
    home.run("run")
    made = ["train-tokenizer", "corpus.txt", "-o", "tok.json", "--vocab-size", "300", "-q"]
    assert Trial(made, home.path, home.env).end().code == 0
    return home


def run(home: Home, *arguments: object, input: bytes = b"", env: dict[str, str] | None = None) -> Ended:
    return Trial([str(part) for part in arguments], home.path, {**home.env, **(env or {})}, None, input).end()


def told(ended: Ended, code: int, command: str, *words: str) -> None:
    assert ended.code == code, ended
    (line,) = ended.err.splitlines()
    assert line.startswith(f"gptcli {command}: error: "), line
    for word in words:
        assert word in line, line


def test_case_02_a_directory_for_a_file_or_the_reverse(home: Home) -> None:
    (home.path / "empty").mkdir(exist_ok=True)
    told(run(home, "config", "check", "empty"), 2, "config", "empty: is a directory; name a run file")
    told(run(home, "count", "empty", "corpus.txt"), 2, "count", "empty/tokenizer.json: no such file")
    told(run(home, "generate", "corpus.txt", "x"), 2, "generate", "corpus.txt: is a file")
    told(run(home, "count", "tok.json", "empty"), 3, "count", "empty: no text files below")


def test_case_14_a_terminal_one_column_wide(home: Home) -> None:
    for columns in ("1", "0", "-5", "wide", "100000"):
        env = {"COLUMNS": columns, "LINES": columns, "TERM": "xterm", "CI": ""}
        for arguments in (["count", "tok.json", "corpus.txt"], ["--help"], ["checkpoint", "list", "run"]):
            ended = Trial(arguments, home.path, {**home.env, **env}, None, b"", "terminal").end()
            assert ended.code == 0, ended


def test_case_15_an_ascii_locale(home: Home) -> None:
    (home.path / "é.txt").write_text("naïve 日本\n")
    environment = {**os.environ, **home.env, "LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "gptcli"]
    for arguments, code in ((["encode", "tok.json", "é.txt"], 0), (["count", "tok.json", "ü.txt"], 2)):
        done = subprocess.run([*command, *arguments], cwd=home.path, env=environment, capture_output=True)
        assert done.returncode == code, done
        assert b"Traceback" not in done.stderr
    ids = subprocess.run([*command, "encode", "tok.json", "é.txt"], cwd=home.path, env=environment, capture_output=True)
    again = subprocess.run(
        [*command, "decode", "tok.json"], cwd=home.path, env=environment, capture_output=True, input=ids.stdout
    )
    assert again.stdout == "naïve 日本\n".encode()
    for more in (["--stop", "é"], ["--choices", "é,ü"], ["--regex", "é+ü"]):  # text, as in any other locale
        arguments = ["generate", "run", "naïve 日本", "--max-tokens", "4", *more]
        found = [
            subprocess.run([*command, *arguments], cwd=home.path, env=env, capture_output=True)
            for env in (environment, {**environment, "LC_ALL": "C.UTF-8"})
        ]
        assert found[0].stdout == found[1].stdout
        assert (found[0].returncode, found[0].stderr) == (found[1].returncode, found[1].stderr)


def test_case_16_links_loops_fifos_and_devices(home: Home) -> None:
    for name in ("loop", "other"):
        (home.path / name).unlink(missing_ok=True)
    (home.path / "loop").symlink_to("other")
    (home.path / "other").symlink_to("loop")
    told(run(home, "count", "tok.json", "loop"), 2, "count", "loop: symbolic link loop")
    train = ("train-tokenizer", "corpus.txt", "--vocab-size", 280, "-q", "--force", "-o")
    told(run(home, *train, "/dev/null"), 2, "train-tokenizer", "/dev/null: is no regular file")
    (home.path / "target.json").write_text("old")
    (home.path / "link.json").symlink_to("target.json")
    assert run(home, *train, "link.json").code == 0
    assert (home.path / "link.json").is_symlink()
    assert (home.path / "target.json").read_bytes().startswith(b"{")


def test_case_17_a_file_name_that_begins_with_a_dash(home: Home) -> None:
    shutil.copy(home.path / "corpus.txt", home.path / "-corpus.txt")
    assert run(home, "count", "tok.json", "--", "-corpus.txt").code == 0
    told(run(home, "count", "tok.json", "-corpus.txt"), 2, "count", "No such option")


def test_case_18_no_home_no_directory_no_place_for_temporary_files(home: Home, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")}
    environment |= {"TMPDIR": "/none", "OMP_NUM_THREADS": "1"}
    gone = tmp_path / "gone"
    leave = f"import os; os.mkdir({str(gone)!r}); os.chdir({str(gone)!r}); os.rmdir({str(gone)!r})"
    program = f"{leave}; from gptcli.cli.main import main; main()"
    for arguments, code in (
        (["count", str(home.path / "tok.json"), str(home.path / "corpus.txt")], 0),
        (["count", "tok.json"], 2),
        (["train-tokenizer", str(home.path / "corpus.txt"), "-o", "tok.json", "-q"], 1),
    ):
        done = subprocess.run([sys.executable, "-c", program, *arguments], env=environment, capture_output=True)
        assert done.returncode == code, done
        assert done.stderr.count(b"\n") == (code != 0), done.stderr


def test_case_54_a_device_that_is_not_there(home: Home) -> None:
    told(run(home, "generate", "run", "x", "--device", "cuda:7"), 2, "generate", "cuda:7 is not available here")
    told(run(home, "generate", "run", "x", "--device", "abacus"), 2, "generate", "no device 'abacus'; use auto, cpu")
    arguments = ("pretrain", "run.yaml", "-s", "run_dir=none", "-s", "runtime.device=mps", "-q")
    told(run(home, *arguments), 2, "pretrain", "runtime.device: mps is not available here; available: cpu")


def test_case_55_fewer_rows_than_a_batch_and_an_epoch_that_ends_in_the_middle_of_one(home: Home) -> None:
    (home.path / "small.txt").write_text((home.path / "corpus.txt").read_text()[:700])
    arguments = ("pretrain", "run.yaml", "-s", "data.train=small.txt", "-s", "train.batch_size=64", "-q")
    ended = run(home, *arguments, "-s", "run_dir=small", "-s", "train.micro_batch_size=16")
    assert ended.code == 0, ended
    assert (home.path / "small" / "latest" / "model.safetensors").is_file()


def test_case_59_nothing_to_evaluate_on(home: Home) -> None:
    (home.path / "blank.txt").write_text("")
    told(run(home, "evaluate", "run", "blank.txt", "-q"), 3, "evaluate", "no text to evaluate")
    told(run(home, "evaluate", "run", "-q"), 3, "evaluate", "stdin: no input; name files or pipe text in")
