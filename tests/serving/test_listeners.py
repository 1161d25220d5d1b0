"""Who is told of a job's changes, and who of its end alone."""

from __future__ import annotations

from musiccm.serving.listeners import Listeners


def test_each_is_told_what_it_asked_for_until_it_ends():
    listeners, told = Listeners(), []
    end_changes = listeners.add("a", lambda: told.append("change"), end_only=False)
    end_ends = listeners.add("a", lambda: told.append("end"), end_only=True)
    listeners.add("b", lambda: told.append("other"), end_only=False)
    listeners.tell("a")
    assert told == ["change"]
    listeners.tell("a", ended=True)
    assert told == ["change", "change", "end"]
    end_changes()
    end_changes()  # twice does no harm
    listeners.tell("a", ended=True)
    assert told[3:] == ["end"]
    end_ends()
    listeners.tell("a", ended=True)
    assert len(told) == 4
    listeners.tell_all()
    assert told[4:] == ["other"]


def test_all_are_told_when_the_server_ends_though_one_fails(caplog):
    listeners, told = Listeners(), []
    listeners.add("a", lambda: 1 // 0, end_only=False)
    listeners.add("a", lambda: told.append("a"), end_only=True)
    listeners.add("b", lambda: told.append("b"), end_only=True)
    listeners.tell_all()
    assert sorted(told) == ["a", "b"] and "a listener failed" in caplog.text
