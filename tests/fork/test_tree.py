# SPDX-License-Identifier: Apache-2.0
"""apply and export: the tree, the patches, and the way from one to the other and back."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.fork.toy import ENGINE, Toy
from tools.fork.cli import main
from tools.fork.git import git
from tools.fork.patches import added_lines, patch_files
from tools.fork.project import ForkError
from tools.fork.tree import apply, export, place_overlay


def log(tree: Path) -> list[str]:
    return git(tree, "log", "--reverse", "--format=%s").splitlines()


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in patch_files(folder)}


def test_apply_makes_one_commit_for_upstream_and_one_per_patch(patched: Toy) -> None:
    release = patched.project.release()
    tree = apply(patched.project, release, force=True)
    assert log(tree) == ["vLLM 1.0", "Speak", "Number the steps"]
    assert git(tree, "log", "-1", "--format=%b").strip() == "A body of two lines,\nkept as it is."
    assert "step 3.5" in (tree / "vllm/steps.txt").read_text()
    assert git(tree, "status", "--porcelain") == ""


def test_commit_ids_depend_on_the_patches_alone(patched: Toy) -> None:
    release = patched.project.release()
    first = git(apply(patched.project, release, force=True), "rev-parse", "HEAD")
    subprocess.run(["rm", "-rf", str(patched.project.build)], check=True)
    assert git(apply(patched.project, release), "rev-parse", "HEAD") == first


def test_apply_then_export_changes_nothing(patched: Toy) -> None:
    release = patched.project.release()
    before = snapshot(patched.project.patches(release))
    assert [name for name in before] == ["0001-Speak.patch", "0002-Number-the-steps.patch"]
    apply(patched.project, release, force=True)
    assert export(patched.project, release) == ([], [])
    assert snapshot(patched.project.patches(release)) == before


def test_exported_patches_name_no_commit_and_no_git_version(patched: Toy) -> None:
    for path in patch_files(patched.project.patches(patched.project.release())):
        text = path.read_text()
        assert text.startswith("From " + "0" * 40 + " Mon Sep 17 00:00:00 2001\n")
        assert not text.rstrip().endswith(git(path.parent, "--version").split()[2])


def test_export_follows_amended_reordered_and_dropped_commits(patched: Toy) -> None:
    release = patched.project.release()
    tree = patched.project.tree(release)
    git(tree, "reset", "-q", "--hard", "HEAD~2")
    patched.commit("Add a model", {"vllm/models/llama.py": "LLAMA = 2\n"})
    written, removed = export(patched.project, release)
    assert written == ["0001-Add-a-model.patch"]
    assert removed == ["0001-Speak.patch", "0002-Number-the-steps.patch"]


def test_export_ignores_the_user_configuration(
    patched: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = patched.project.release()
    before = snapshot(patched.project.patches(release))
    config = tmp_path / "gitconfig"
    config.write_text(
        "[diff]\n\tnoprefix = true\n\tcontext = 1\n[format]\n\tsignature = me\n\tnumbered = true\n"
        "[core]\n\tabbrev = 4\n\thooksPath = /nowhere\n[commit]\n\tgpgSign = true\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))  # as inside a hook
    apply(patched.project, release, force=True)
    assert export(patched.project, release) == ([], [])
    assert snapshot(patched.project.patches(release)) == before


def test_apply_does_not_drop_commits_that_are_not_exported(patched: Toy) -> None:
    release = patched.project.release()
    patched.commit("Not exported", {"vllm/models/llama.py": "LLAMA = 3\n"})
    with pytest.raises(ForkError, match="commits that are not exported"):
        apply(patched.project, release)
    apply(patched.project, release, force=True)
    assert log(patched.project.tree(release)) == ["vLLM 1.0", "Speak", "Number the steps"]


def test_apply_does_not_drop_changes_that_are_not_committed(patched: Toy) -> None:
    release = patched.project.release()
    patch_files(patched.project.patches(release))[1].unlink()
    (patched.project.tree(release) / "vllm/engine.py").write_text("NAME = 'edited'\n")
    with pytest.raises(ForkError, match=r"not committed: vllm/engine\.py"):
        apply(patched.project, release)


def test_apply_takes_over_patches_that_changed_on_disk(patched: Toy) -> None:
    # As after pulling someone else's work: nothing of one's own would be lost.
    release = patched.project.release()
    patch_files(patched.project.patches(release))[1].unlink()
    assert log(apply(patched.project, release)) == ["vLLM 1.0", "Speak"]


def test_failing_patch_names_file_and_hunk_and_leaves_the_tree_for_repair(
    patched: Toy, capfd: pytest.CaptureFixture[str]
) -> None:
    release = patched.project.release()
    tree = patched.project.tree(release)
    patched.commit(
        "Two places",
        {
            "vllm/steps.txt": ENGINE.replace("step 3\n", "step 3\nstep 3.5\n")
            .replace("step 10\n", "step 10\nstep 10.5\n")
            .replace("step 25\n", "step 25\nstep 25.5\n")
        },
    )
    export(patched.project, release)
    third = patch_files(patched.project.patches(release))[2]
    third.write_text(third.read_text().replace(" step 25\n", " step twenty-five\n"))
    assert main(["--root", str(patched.project.root), "apply", "--force"]) == 1
    message = capfd.readouterr().err
    # git's own words.
    assert "Patch failed at 0003 Two places" in message
    assert "error: patch failed: vllm/steps.txt:24\n" in message
    assert "Rejected hunk #2." in message
    assert f"{tree} is left for repair" in message and "git am --continue" in message
    # The next apply does not run over the unfinished repair, and export does not write half of it.
    with pytest.raises(ForkError, match="git am --continue"):
        apply(patched.project, release)
    with pytest.raises(ForkError, match="in the middle of 'git am'"):
        export(patched.project, release)
    # The repair: the text as it should have been.
    text = (tree / "vllm/steps.txt").read_text()
    for marker in ("<<<<<<<", "=======", ">>>>>>>"):
        assert marker not in text, "the base of this patch is unknown, so there is nothing to merge"
    assert "step 10.5" in text and (tree / "vllm/steps.txt.rej").exists()
    (tree / "vllm/steps.txt").write_text(text.replace("step 25\n", "step 25\nstep 25.5\n"))
    (tree / "vllm/steps.txt.rej").unlink()
    git(tree, "add", "-u")
    git(tree, "am", "--continue")
    export(patched.project, release)
    assert added_lines(third.read_text()) == 2
    apply(patched.project, release, force=True)


def test_three_way_merge_where_the_base_is_known(
    patched: Toy, capfd: pytest.CaptureFixture[str]
) -> None:
    # The third patch was made on other surroundings than the first now leaves, which the object
    # store still has.
    release = patched.project.release()
    tree = patched.project.tree(release)
    patched.commit("Third", {"vllm/engine.py": "from vllm.speech import SPEECH\nNAME = 'third'\n"})
    export(patched.project, release)
    folder = patched.project.patches(release)
    first = folder / "0001-Speak.patch"
    first.write_text(first.read_text().replace("'fork'", "'spoon'"))
    with pytest.raises(ForkError, match=r"left for repair.*conflict markers"):
        apply(patched.project, release, force=True)
    message = capfd.readouterr().err
    assert "CONFLICT (content): Merge conflict in vllm/engine.py" in message
    assert "Patch failed at 0003 Third" in message
    assert "<<<<<<<" in (tree / "vllm/engine.py").read_text()


def test_added_lines_of_a_patch_whose_lines_look_like_headers() -> None:
    text = (
        "diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1,3 +1,4 @@ def f\n a\n+++ plus\n b\n c\n"
        "@@ -9,2 +10,2 @@\n--- minus\n+new\n z\n"
        "diff --git a/n b/n\nnew file mode 100644\n--- /dev/null\n+++ b/n\n@@ -0,0 +1 @@\n+only\n"
        "diff --git a/o b/o\ndeleted file mode 100644\n--- a/o\n+++ /dev/null\n@@ -1 +0,0 "
        "@@\n-gone\n"
    )
    assert added_lines(text) == 3


def test_overlay_is_linked_and_follows_edits(patched: Toy) -> None:
    project, release = patched.project, patched.project.release()
    tree = apply(project, release)
    assert (tree / "vllm/speech").is_symlink() and (tree / "vllm/models/speech_lm.py").is_symlink()
    assert not (tree / "vllm/models").is_symlink()
    patched.write({"vllm/speech/later.py": "LATER = 1\n", "vllm/models/second.py": "SECOND = 1\n"})
    assert (tree / "vllm/speech/later.py").read_text() == "LATER = 1\n"
    assert not (tree / "vllm/models/second.py").exists()
    place_overlay(project, release)
    assert (tree / "vllm/models/second.py").read_text() == "SECOND = 1\n"
    (project.root / "vllm/models/second.py").unlink()
    apply(project, release)
    assert not (tree / "vllm/models/second.py").is_symlink()
    assert git(tree, "status", "--porcelain", "--untracked-files=all") == ""


def test_overlay_can_be_copied(patched: Toy) -> None:
    project, release = patched.project, patched.project.release()
    tree = apply(project, release, copy=True)
    assert (tree / "vllm/speech/__init__.py").read_text() == "SPEECH = 1\n"
    assert not [path for path in tree.rglob("*") if path.is_symlink()]
    assert git(tree, "status", "--porcelain", "--untracked-files=all") == ""
    apply(project, release)
    assert (tree / "vllm/speech").is_symlink()


@pytest.mark.parametrize("name", ["vllm/engine.py", "vllm/models", "vllm/engine.py/below.py"])
def test_overlay_collision(toy: Toy, name: str) -> None:
    if name == "vllm/models":  # a file where upstream has a folder
        subprocess.run(["rm", "-r", str(toy.project.root / name)], check=True)
    toy.write({name: ""})
    with pytest.raises(ForkError, match=f"only add files, but these exist upstream:\n  {name}\n"):
        apply(toy.project, toy.project.release())


def test_commit_may_not_hold_an_overlay_file(patched: Toy) -> None:
    release = patched.project.release()
    tree = patched.project.tree(release)
    git(tree, "add", "--force", "vllm/models/speech_lm.py")
    git(tree, "commit", "-q", "-m", "By mistake")
    with pytest.raises(ForkError, match=r"vllm/models/speech_lm\.py"):
        export(patched.project, release)


def test_export_warns_about_what_is_not_committed(
    patched: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    release = patched.project.release()
    (patched.project.tree(release) / "vllm/engine.py").write_text("edited\n")
    export(patched.project, release)
    assert "not committed, so not exported: vllm/engine.py" in capsys.readouterr().err


def test_another_archive_needs_another_tree(patched: Toy) -> None:
    path = patched.project.root / "upstream.toml"
    digest = patched.project.release().archive.sha256
    path.write_text(path.read_text().replace(digest, "0" * 64))
    from tools.fork.project import ForkError, load_project

    project = load_project(patched.project.root)
    with pytest.raises(ForkError, match="built from another archive"):
        apply(project, project.release())


def test_user_checkout_becomes_the_fork(
    patched: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patched.write({"csrc/ops/op.cpp": "int op;\n", "CMakeLists.txt": "project(unison)\n"})
    checkout = tmp_path / "checkout"
    git(tmp_path, "clone", "-q", str(patched.project.tree(patched.project.release())), "checkout")
    git(checkout, "reset", "-q", "--hard", "upstream")
    root = str(patched.project.root)
    assert main(["--root", root, "apply", "--tree", str(checkout)]) == 0
    assert "VLLM_VERSION_OVERRIDE=1.0+unison.3.cpu" in capsys.readouterr().out
    assert log(checkout)[1:] == [
        "Speak",
        "Number the steps",
        "Add Unison's overlay and extension",
    ]
    assert git(checkout, "status", "--porcelain") == ""
    assert (checkout / "vllm/speech/__init__.py").read_text() == "SPEECH = 1\n"
    assert (checkout / "csrc/unison/ops/op.cpp").exists()
    assert (
        "find_package(Torch REQUIRED)\nadd_subdirectory(csrc/unison)\n"
        in (checkout / "CMakeLists.txt").read_text()
    )
    assert 'CMakeExtension(name="vllm._unison_C")' in (checkout / "setup.py").read_text()
    # A second time there is nothing left to apply, and the checkout says so before anything is
    # changed.
    assert main(["--root", root, "apply", "--tree", str(checkout)]) == 1
    assert "exist upstream" in capsys.readouterr().err


def test_user_checkout_of_another_release_is_refused(patched: Toy, tmp_path: Path) -> None:
    from tools.fork.checkout import apply_to_checkout

    checkout = tmp_path / "checkout"
    git(tmp_path, "clone", "-q", str(patched.project.tree(patched.project.release())), "checkout")
    git(checkout, "reset", "-q", "--hard", "upstream")
    git(checkout, "tag", "v1.0")
    git(checkout, "commit", "-q", "--allow-empty", "-m", "Later")
    with pytest.raises(ForkError, match=r"is not at v1\.0"):
        apply_to_checkout(patched.project, patched.project.release(), checkout)
    with pytest.raises(ForkError, match="not a git checkout"):
        apply_to_checkout(patched.project, patched.project.release(), tmp_path)
