# SPDX-License-Identifier: Apache-2.0
"""rebase and check: the patches on another release."""

from __future__ import annotations

import re

import pytest

from tests.fork.toy import ENGINE, RELEASES, Toy
from tools.fork.check import check
from tools.fork.cli import main
from tools.fork.git import git
from tools.fork.patches import LIMIT, patch_files, read_patch
from tools.fork.tree import apply, export


def conflicting(patched: Toy) -> None:
    """Two more patches that change what release 2.0 changed, and one that does not."""
    edited = ENGINE.replace("step 3\n", "step 3\nstep 3.5\n")
    first = edited.replace("step 20\n", "step 20, spoken\n")
    patched.commit("Speak a step", {"vllm/steps.txt": first})
    patched.commit("Add a model", {"vllm/models/llama.py": "LLAMA = 2\n"})
    patched.commit(
        "Sing a step", {"vllm/steps.txt": first.replace("step 20, spoken", "step 20, sung")}
    )
    export(patched.project, patched.project.release())


def test_rebase_merges_moved_context(patched: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(patched.project.root)
    assert main(["--root", root, "rebase", "2.0"]) == 0
    assert "export --release 2.0" in capsys.readouterr().out
    onto = patched.project.release("2.0")
    text = (patched.project.tree(onto) / "vllm/steps.txt").read_text()
    assert text.startswith("preface 1\n") and "step 3.5\n" in text and "step twenty\n" in text
    assert (patched.project.tree(onto) / "vllm/speech").is_symlink()
    assert main(["--root", root, "export", "--release", "2.0"]) == 0
    assert [path.name for path in patch_files(patched.project.patches(onto))] == [
        "0001-Speak.patch",
        "0002-Number-the-steps.patch",
    ]
    apply(patched.project, onto, force=True)
    assert export(patched.project, onto) == ([], [])
    assert main(["--root", root, "check"]) == 0


def test_rebase_says_which_patch_conflicts_and_leaves_the_tree_for_repair(
    patched: Toy, capfd: pytest.CaptureFixture[str]
) -> None:
    conflicting(patched)
    root = str(patched.project.root)
    assert main(["--root", root, "rebase", "2.0"]) == 1
    message = capfd.readouterr().err
    # git's own words.
    assert re.search(r"error: could not apply [0-9a-f]+\.\.\. Speak a step\n", message)
    assert "CONFLICT (content): Merge conflict in vllm/steps.txt\n" in message
    assert "Add a model" not in message and "Number" not in message
    assert "git rebase --continue" in message and "export --release 2.0" in message
    onto = patched.project.release("2.0")
    tree = patched.project.tree(onto)
    assert "<<<<<<<" in (tree / "vllm/steps.txt").read_text()
    for step in ("step 20, spoken", "step 20, sung"):
        text = git(tree, "show", "HEAD:vllm/steps.txt")
        for old in ("step twenty", "step 20, spoken"):
            text = text.replace(f"{old}\n", f"{step}\n")
        (tree / "vllm/steps.txt").write_text(text)
        git(tree, "add", "vllm/steps.txt")
        git(tree, "rebase", "--continue")
        if not (tree / ".git" / "rebase-merge").exists():
            break
    assert main(["--root", root, "export", "--release", "2.0"]) == 0
    texts = [read_patch(path) for path in patch_files(patched.project.patches(onto))]
    assert "-step twenty" in texts[2] and "+step 20, spoken" in texts[2]
    assert len(texts) == 5
    assert main(["--root", root, "check"]) == 0


def test_rebase_does_not_replace_patches_unasked(
    patched: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(patched.project.root)
    assert main(["--root", root, "rebase", "2.0"]) == 0
    assert main(["--root", root, "rebase", "2.0"]) == 1
    assert "has patches already" in capsys.readouterr().err
    assert main(["--root", root, "rebase", "2.0", "--force"]) == 0
    assert main(["--root", root, "rebase", "1.0"]) == 1
    assert "on 1.0 already" in capsys.readouterr().err


def test_check_tries_every_release_and_counts(
    patched: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--root", str(patched.project.root), "check"]) == 0
    output = capsys.readouterr().out
    assert "1.0     2 added  0001-Speak.patch" in output
    assert "2.0     3 added in all, limit 300" in output


def test_check_reports_the_release_file_and_hunk(patched: Toy) -> None:
    conflicting(patched)
    good, bad = check(patched.project)
    assert good.problems == []
    assert bad.version == "2.0" and len(bad.problems) == 1
    assert bad.problems[0].startswith(
        "0003-Speak-a-step.patch: error: patch failed: vllm/steps.txt:18\n"
    )


@pytest.mark.parametrize("trailer", ["", "\n\nSigned-off-by: A <a@localhost>"])
def test_check_wants_a_body_of_every_patch(
    patched: Toy, capsys: pytest.CaptureFixture[str], trailer: str
) -> None:
    project, tree = patched.project, patched.project.tree(patched.project.release())
    (tree / "vllm/models/llama.py").write_text("LLAMA = 2\n")
    git(tree, "commit", "-q", "-a", "-m", f"A subject that\ngoes over two lines{trailer}")
    export(project, project.release())
    name = "0003-A-subject-that.patch"
    assert main(["--root", str(project.root), "check"]) == 1
    message = f"error: 1.0: {name}: its message has only a subject; add a body that says why\n"
    assert capsys.readouterr().err.endswith(f"from vllm-2.0.tar.gz\n{message}")
    git(tree, "commit", "-q", "--amend", "-m", f"Subject\n\nThe reason.{trailer}")
    export(project, project.release())
    assert main(["--root", str(project.root), "check"]) == 0


def test_check_leaves_the_working_trees_alone(patched: Toy) -> None:
    tree = patched.project.tree(patched.project.release())
    (tree / "vllm/engine.py").write_text("being edited\n")
    assert [report.problems for report in check(patched.project)] == [[], []]
    assert (tree / "vllm/engine.py").read_text() == "being edited\n"
    assert git(tree, "status", "--porcelain") == " M vllm/engine.py\n"


def test_check_limits_added_lines(patched: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    patched.commit("Much", {"vllm/models/llama.py": "LLAMA = 1\n" + "x = 1\n" * (LIMIT - 3)})
    export(patched.project, patched.project.release())
    assert main(["--root", str(patched.project.root), "check"]) == 0
    patched.commit("More", {"vllm/engine.py": "a = 1\nb = 2\n"})
    export(patched.project, patched.project.release())
    assert main(["--root", str(patched.project.root), "check"]) == 1
    assert f"the patches add {LIMIT + 2} lines; the limit is {LIMIT}" in capsys.readouterr().err


def test_check_finds_overlay_collisions(patched: Toy) -> None:
    patched.write({"vllm/obsolete.py": ""})
    problems = check(patched.project)[0].problems
    assert len(problems) == 1 and "vllm/obsolete.py" in problems[0]


def test_counts_in_the_readme(patched: Toy) -> None:
    project = patched.project
    patched.write(
        {
            "patches/README.md": "# Patches\n<!-- counts: written by export -->\n"
            "<!-- end of counts -->\nThe end.\n"
        }
    )
    assert "the counts in patches/README.md" in check(project)[0].problems[0]
    export(project, project.release())
    text = (project.root / "patches/README.md").read_text()
    assert "| `0001-Speak.patch` | 2 |" in text and "| **all** | **3** of 300 |" in text
    assert text.startswith("# Patches\n") and text.endswith("-->\nThe end.\n")
    assert check(project)[0].problems == []


def test_releases_differ() -> None:
    assert RELEASES["1.0"]["vllm/steps.txt"] != RELEASES["2.0"]["vllm/steps.txt"]


def test_rebase_and_export_say_which_patches_became_empty(
    patched: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(patched.project.root)
    patched.commit(
        "Twenty in words",
        {
            "vllm/steps.txt": ENGINE.replace("step 3\n", "step 3\nstep 3.5\n").replace(
                "step 20\n", "step twenty\n"
            )
        },
    )
    export(patched.project, patched.project.release())
    capsys.readouterr()
    assert main(["--root", root, "rebase", "2.0"]) == 0
    left = "2.0 does without 0003-Twenty-in-words.patch of 1.0\n"
    assert capsys.readouterr().out.endswith(left)
    assert main(["--root", root, "export", "--release", "2.0"]) == 0
    assert capsys.readouterr().out.endswith(f"2 patches, 3 added lines (limit 300)\n{left}")
    assert main(["--root", root, "export"]) == 0
    assert "does without" not in capsys.readouterr().out
