"""Pushes of a folder to a fake of the hub, over HTTP: requests, the files that arrive, and every fault on the way."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from fake_hub import FakeHub, FakeRepository
from huggingface_hub import constants

from evomerge.errors import Interrupted, InvalidInput
from evomerge.hub import HubRepository
from evomerge.hub.hub_faults import hub_faults
from evomerge.hub.write_access import lacks_write_access

# huggingface_hub hands a file to its client in a way that the client's newest versions find old.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")

FILES = {
    "README.md": b"---\nlicense: mit\n---\n",
    "config.json": b"{}",
    "model-00001-of-00002.safetensors": b"a" * 1000,
    "model-00002-of-00002.safetensors": b"b" * 1000,
    "recipe.json": b'{"recipe": 1}',
    "recipe-files/fisher.safetensors": b"c" * 100,
}


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A folder like an export."""
    return _folder(tmp_path / "export", FILES)


def _folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def _arrived(hub: FakeHub, name: str = "me/merge") -> dict[str, bytes]:
    return {path: content for path, content in hub.repositories[name].files.items() if path != ".gitattributes"}


def test_a_push_makes_the_repository_and_sends_every_file_in_one_commit(hub: FakeHub, export: Path) -> None:
    told: list[str] = []
    repository = HubRepository("me/merge")
    repository.check()
    assert hub.repositories == {}
    pushed = repository.push(export, told.append)
    assert _arrived(hub) == FILES
    assert len(hub.uploads) == 3
    assert hub.repositories["me/merge"].commits[1:] == [pushed.commit]
    assert pushed.url == f"{hub.url}/me/merge"
    assert (pushed.files, pushed.bytes) == (len(FILES), sum(map(len, FILES.values())))
    assert told == [f"uploading 6 files (2.1 kB) to {hub.url}/me/merge"]
    assert not hub.repositories["me/merge"].private


def test_the_same_push_again_sends_and_commits_nothing(hub: FakeHub, export: Path) -> None:
    first = HubRepository("me/merge").push(export)
    repository = HubRepository("me/merge")
    repository.check()
    assert repository.push(export).commit == first.commit
    assert len(hub.uploads) == 3
    assert len(hub.repositories["me/merge"].commits) == 2


def test_parts_of_an_earlier_export_are_deleted_and_other_files_stay(
    hub: FakeHub, export: Path, tmp_path: Path
) -> None:
    HubRepository("me/merge").push(export)
    hub.repositories["me/merge"].files["picture.png"] = b"png"
    small = {"README.md": FILES["README.md"], "model.safetensors": b"d", "recipe.json": b"{}", "config.json": b"{}"}
    HubRepository("me/merge").push(_folder(tmp_path / "other", small))
    assert _arrived(hub) == {**small, "picture.png": b"png"}


def test_nothing_of_an_earlier_export_is_taken_for_a_part_of_the_new_one(
    hub: FakeHub, export: Path, tmp_path: Path
) -> None:
    hub.repositories["me/merge"] = FakeRepository(private=False, files={"LICENSE": b"chosen with the repository"})
    HubRepository("me/merge").push(export)
    assert "LICENSE" in _arrived(hub)
    names = ("generation_config.json", "tokenizer.json", "chat_template.jinja", "added_tokens.json", "modeling_x.py")
    names += ("tekken.json", "tiktoken.model", "additional_chat_templates/rag.jinja")
    earlier = dict.fromkeys((*names, "USE_POLICY.md", "mergekit.yaml", "model.safetensors.index.json"), b"{}")
    HubRepository("me/merge").push(_folder(tmp_path / "earlier", {**FILES, **earlier}))
    hub.repositories["me/merge"].files |= {"scripts/chat.py": b"", "eval/recipe.json": b""}
    HubRepository("me/merge").push(export)
    assert _arrived(hub) == {**FILES, "scripts/chat.py": b"", "eval/recipe.json": b""}


def test_private_makes_a_private_repository_and_is_refused_for_a_public_one(hub: FakeHub, export: Path) -> None:
    HubRepository("me/secret", private=True).push(export)
    assert hub.repositories["me/secret"].private
    HubRepository("me/secret", private=True).check()
    HubRepository("me/merge").push(export)
    with pytest.raises(InvalidInput, match="exists and is public"):
        HubRepository("me/merge", private=True).check()
    sent, repository = list(hub.uploads), HubRepository("me/later", private=True)
    repository.check()
    hub.repositories["me/later"] = FakeRepository(private=False)
    with pytest.raises(InvalidInput, match=f"exists and is public.*the export is in {export}"):
        repository.push(export)
    assert hub.uploads == sent


def test_without_a_token_nothing_is_asked(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InvalidInput, match=r"needs a token .* set HF_TOKEN, or run `hf auth login`; nothing was made"):
        HubRepository("me/merge")
    assert hub.requests == []


def test_the_login_on_this_machine_serves_as_well(
    hub: FakeHub, export: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("hf_ofthetests\n")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    HubRepository("me/merge").push(export)
    assert _arrived(hub) == FILES


@pytest.mark.parametrize("name", ["merge", "me/merge/again", "me/", "me/-x", "me/a--b", "me/a b", "me/" + "x" * 97])
def test_what_is_no_id_of_a_repository_is_refused(hub: FakeHub, name: str) -> None:
    with pytest.raises(InvalidInput, match="give OWNER/NAME"):
        HubRepository(name)


def test_a_token_that_can_only_read_or_is_unknown_is_refused_before_anything_is_made(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.role = "read"
    with pytest.raises(InvalidInput, match=r"'tests' can only read.*nothing was made"):
        HubRepository("me/merge").check()
    monkeypatch.setenv("HF_TOKEN", "hf_anotherone")
    with pytest.raises(InvalidInput, match=r"does not know the token.*nothing was made") as caught:
        HubRepository("me/merge").check()
    assert "hf_anotherone" not in str(caught.value)
    assert hub.repositories == {}


def test_an_owner_that_the_account_may_not_write_to_is_refused_before_anything_is_made(hub: FakeHub) -> None:
    hub.organisations = {"team": "write", "club": "read", "lab": "contributor", "new": "of-a-later-hub"}
    for owner in ("mistralai", "club"):
        with pytest.raises(InvalidInput, match=rf"may not write to '{owner}', but to me, team, lab.*nothing was made"):
            HubRepository(f"{owner}/merge").check()
    for owner in ("me", "ME", "team", "lab", "new"):
        HubRepository(f"{owner}/merge").check()


def _scope(name: str, *permissions: str) -> dict[str, Any]:
    return {"entity": {"type": "user", "name": name}, "permissions": list(permissions)}


@pytest.mark.parametrize(
    ("everywhere", "scopes", "allowed"),
    [
        ([], [_scope("me", "repo.content.read")], False),
        (["discussion.write"], [_scope("team", "repo.write")], False),
        ([], [_scope("me", "repo.content.read", "repo.write")], True),
        ([], [_scope("me/merge", "repo.write")], True),
        (["repo.write"], [], True),
        ("all", [], True),
        ([], [{"permissions": ["repo.write"]}], True),
        ([], [{"entity": {"name": "me"}, "permissions": "all"}], True),
    ],
)
def test_a_fine_grained_token_without_the_right_is_refused_and_unknown_forms_are_left_to_the_hub(
    everywhere: Any, scopes: Any, allowed: bool, hub: FakeHub
) -> None:
    hub.role, hub.rights = "fineGrained", {"fineGrained": {"global": everywhere, "scoped": scopes}}
    with nullcontext() if allowed else pytest.raises(InvalidInput, match="'tests' may not write to the repositories"):
        HubRepository("me/merge").check()


@pytest.mark.parametrize(
    "account", [{}, {"auth": None}, {"type": "org", "name": "team"}, {"type": "user", "name": "me", "orgs": [None]}]
)
def test_an_account_of_an_unknown_form_is_left_to_the_hub(account: dict[str, Any]) -> None:
    assert lacks_write_access({"auth": {"accessToken": {"role": "fineGrained"}}} | account, "owner/merge") is None


def test_a_repository_with_something_else_is_not_replaced(hub: FakeHub) -> None:
    hub.repositories["me/model"] = FakeRepository(private=False, files={"README.md": b"", "model.safetensors": b"x"})
    with pytest.raises(InvalidInput, match=r"holds model\.safetensors, but no recipe\.json"):
        HubRepository("me/model").check()
    hub.repositories["me/new"] = FakeRepository(private=False)
    HubRepository("me/new").check()


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("POST /api/repos/create", "may not write there; give it write access to 'me'"),
        ("POST /me/merge.git/info/lfs", "may not write there"),
        ("POST /api/models/me/merge/commit", "the hub says: this is not yours"),
    ],
)
def test_a_403_says_what_the_token_lacks_and_where_the_export_is(
    hub: FakeHub, export: Path, where: str, says: str
) -> None:
    hub.refuse[where] = (403, "this is not yours")
    with pytest.raises(InvalidInput, match=says) as caught:
        HubRepository("me/merge").push(export)
    assert str(caught.value).endswith(f"the export is in {export}")
    assert hub.asked("commit/main") == ("commit" in where)


def test_a_card_that_the_hub_refuses_is_the_reason(hub: FakeHub, export: Path) -> None:
    (export / "README.md").write_text("# no metadata")
    with pytest.raises(InvalidInput, match=r"refuses the upload to me/merge: Invalid metadata in README.md"):
        HubRepository("me/merge").push(export)
    assert hub.uploads == []


@pytest.mark.parametrize("where", ["PUT /lfs/", "POST /api/models/me/merge/preupload", "POST .*/commit/main"])
def test_a_push_whose_connection_breaks_goes_on_with_the_same_command(hub: FakeHub, export: Path, where: str) -> None:
    hub.broken = where
    with pytest.raises(Interrupted, match=r"the connection to the hub broke during the upload.*same command") as caught:
        HubRepository("me/merge").push(export)
    assert f"the export is in {export}" in str(caught.value)
    assert _arrived(hub) == {}
    sent = list(hub.uploads)
    hub.broken = None
    repository = HubRepository("me/merge")
    repository.check()
    repository.push(export)
    assert _arrived(hub) == FILES
    assert sorted({*sent, *hub.uploads}) == sorted(hub.uploads)  # nothing was sent twice
    assert {path.relative_to(export).as_posix() for path in export.rglob("*") if path.is_file()} == set(FILES)


def test_a_hub_that_is_out_of_order_or_away_is_another_try(hub: FakeHub, export: Path) -> None:
    hub.refuse["GET /api/whoami-v2"] = (503, "maintenance")
    with pytest.raises(Interrupted, match=r"it answered 503\); nothing was made"):
        HubRepository("me/merge").check()
    hub.refuse = {}
    hub.broken = "whoami"
    with pytest.raises(Interrupted, match="nothing was made"):
        HubRepository("me/merge").check()


def test_a_machine_that_is_told_to_stay_offline_is_not_connected(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InvalidInput, match="HF_HUB_OFFLINE is set"):
        HubRepository("me/merge").check()
    assert hub.requests == []


def test_a_commit_of_somebody_else_in_between_is_not_overwritten(hub: FakeHub, export: Path) -> None:
    hub.refuse["POST .*/commit/main"] = (412, "A commit has happened since")
    with pytest.raises(InvalidInput, match="somebody else changed the repository meanwhile"):
        HubRepository("me/merge").push(export)


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (PermissionError("no rights"), InvalidInput),
        (ConnectionResetError("reset"), Interrupted),
        (KeyError("bug"), KeyError),
    ],
)
def test_faults_are_those_of_the_user_of_the_network_or_of_the_program(
    raised: Exception, error: type[Exception]
) -> None:
    with pytest.raises(error), hub_faults("the upload", repository="me/merge", state="nothing was made"):
        raise raised
