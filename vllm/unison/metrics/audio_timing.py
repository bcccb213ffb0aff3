# SPDX-License-Identifier: Apache-2.0
"""When audio arrives, measured against when a player would need it."""

from dataclasses import dataclass, field


@dataclass
class AudioStats:
    """What one batch of outputs said about audio.

    Attributes:
        seconds: of audio.
        to_first: seconds from the arrival of a request to its first audio.
        gaps: seconds between a request's pieces of audio.
        real_time_factors: of finished requests: seconds from arrival to the last audio, divided
            by the audio's own.
        underruns: pieces that came later than playback needed them.
    """

    seconds: float = 0.0
    to_first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    real_time_factors: list[float] = field(default_factory=list)
    underruns: int = 0


class AudioTimes:
    """Times of one request's audio.

    Playback begins when the first piece is there. When it has played all that came it waits for the
    next piece, which is then an underrun, and goes on when that is there.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._last = 0.0
        self._played_until = 0.0

    def observe(
        self, stats: AudioStats, now: float, arrival: float, seconds: float, finished: bool
    ) -> None:
        """Record an output of the engine.

        Args:
            stats: what is observed is added here.
            now: time of the output, in seconds of any clock.
            arrival: time at which the request arrived, of the same clock.
            seconds: of audio that the output holds.
            finished: whether it is the request's last.
        """
        if seconds > 0:
            if self._seconds == 0:
                stats.to_first.append(now - arrival)
                self._played_until = now
            else:
                stats.gaps.append(now - self._last)
                if now > self._played_until:
                    stats.underruns += 1
                    self._played_until = now
            self._last = now
            self._seconds += seconds
            self._played_until += seconds
            stats.seconds += seconds
        if finished and self._seconds > 0:
            stats.real_time_factors.append((self._last - arrival) / self._seconds)
