"""Programs that were compiled before, by this process's predecessor or beside it: the same bits, or compiled again."""

from training import assert_same_to_the_bit


def test_kept_programs_give_the_same_bits_and_damaged_ones_are_compiled_again(trainer, tmp_path):
    cache = tmp_path / "cache"

    def options(name):
        more = ("--compilation-cache", str(cache))
        return trainer.options(tmp_path / name, *more, epochs=1)

    for process in [trainer.start(options(name)) for name in ("first", "beside")]:  # both write the same entries
        _, err = process.communicate(timeout=900)
        assert process.returncode == 0, err
    assert_same_to_the_bit(tmp_path / "first", tmp_path / "beside")
    entries = {path: path.read_bytes() for path in cache.glob("cpu-*/*-cache")}
    assert len(entries) >= 3
    assert all(path.with_name(f"{path.name}.sha256").exists() for path in entries)
    largest, second, third = sorted(entries, key=lambda path: -len(entries[path]))[:3]
    content = bytearray(entries[largest])
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    second.write_bytes(entries[second][:1000])
    third.with_name("foreign-cache").write_bytes(entries[third])
    out, err = trainer.run(options("again"))
    assert "first step after" in out
    assert "Error reading" not in err
    assert_same_to_the_bit(tmp_path / "again", tmp_path / "first")
    assert largest.read_bytes() != bytes(content)
    assert set(cache.glob("cpu-*/*-cache")) == set(entries)
