//! Matrix transposition: `nn.Linear` stores [out, in], GPT-2's Conv1D [in, out].

/// Side of the squares that are transposed at a time, so that both sides stay in the cache.
const SQUARE: usize = 64;

/// The transpose of a matrix of `rows` rows, with `number_bytes` bytes per number. Trailing bytes
/// that do not fill a matrix of that many rows are dropped.
pub fn transposed(source: &[u8], rows: usize, number_bytes: usize) -> Vec<u8> {
    let columns = source.len() / (rows * number_bytes).max(1);
    let mut target = vec![0; rows * columns * number_bytes];
    for row_square in (0..rows).step_by(SQUARE) {
        for column_square in (0..columns).step_by(SQUARE) {
            for row in row_square..rows.min(row_square + SQUARE) {
                for column in column_square..columns.min(column_square + SQUARE) {
                    let (from, to) = ((row * columns + column) * number_bytes, (column * rows + row) * number_bytes);
                    target[to..to + number_bytes].copy_from_slice(&source[from..from + number_bytes]);
                }
            }
        }
    }
    target
}

#[cfg(test)]
mod tests {
    use super::transposed;

    #[test]
    fn rows_become_columns() {
        assert_eq!(transposed(&[1, 2, 3, 4, 5, 6], 2, 1), [1, 4, 2, 5, 3, 6]);
        assert_eq!(transposed(&[1, 1, 2, 2, 3, 3, 4, 4], 2, 2), [1, 1, 3, 3, 2, 2, 4, 4]);
        assert!(transposed(&[], 0, 4).is_empty());
        for (rows, columns) in [(1, 200), (200, 1), (65, 130), (64, 64)] {
            let source: Vec<u8> = (0..rows * columns * 4).map(|i| (i % 251) as u8).collect();
            let turned = transposed(&source, rows, 4);
            let number = |bytes: &[u8], i: usize| bytes[4 * i..4 * i + 4].to_vec();
            for row in 0..rows {
                for column in 0..columns {
                    assert_eq!(number(&turned, column * rows + row), number(&source, row * columns + column));
                }
            }
            assert_eq!(transposed(&turned, columns, 4), source);
        }
    }
}
