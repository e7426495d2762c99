// Formats amounts and durations as fastroute/figures.py does, with the same integer rounding. A test compares
// the two.

/** An amount divided by a step, rounded half up; BigInt. */
const rounded = (amount, step) => (2n * amount + step) / (2n * step);

/** US dollars: to the cent from 10 dollars on, below that with four significant digits. */
export function dollars(nano) {
  if (nano === 0) return "$0";
  const size = BigInt(Math.abs(nano));
  const step = size >= 10n ** 10n ? 10n ** 7n : 10n ** BigInt(Math.max(0, String(size).length - 4));
  const amount = rounded(size, step) * step;
  const decimals = String(amount % 10n ** 9n).padStart(9, "0").replace(/0+$/, "").padEnd(2, "0");
  return `${nano < 0 ? "-" : ""}$${(amount / 10n ** 9n).toLocaleString("en")}.${decimals}`;
}

/** Each unit, its nanoseconds, and the number from which the next unit is used. */
const UNITS = [
  ["ns", 1n, 1000n], ["µs", 10n ** 3n, 1000n], ["ms", 10n ** 6n, 1000n], ["s", 10n ** 9n, 120n],
  ["min", 60n * 10n ** 9n, 120n], ["h", 3600n * 10n ** 9n, 48n], ["days", 86400n * 10n ** 9n, Infinity],
];

/** A duration with three digits; a dash for none. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const nanoseconds = BigInt(Math.floor(seconds * 1e9 + 0.5));
  if (nanoseconds === 0n) return "0 s";
  for (const [unit, size, limit] of UNITS) {
    const decimals = Math.max(0, 3 - String(nanoseconds / size).length);
    const ten = 10n ** BigInt(decimals);
    const number = rounded(nanoseconds * ten, size);
    if (limit !== Infinity && number >= limit * ten) continue;
    const part = decimals ? String(number % ten).padStart(decimals, "0").replace(/0+$/, "") : "";
    return `${(number / ten).toLocaleString("en")}${part && "."}${part} ${unit}`;
  }
}
