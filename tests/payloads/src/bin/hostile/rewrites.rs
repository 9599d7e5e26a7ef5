pub const TESTS: &[escrow_payloads::Test] = &[];
